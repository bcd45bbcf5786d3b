"""The paper's claims, one by one: its effect, ours with an interval, and a verdict by a stated rule.

Effects are in points of Dice, `better` minus `worse`, unless the claim says otherwise. Verdicts, by the 95% interval of
the bootstrap over patients:
    more        supported where the interval lies above 0, contradicted where it lies below
    no less     supported where it lies above -MARGIN, contradicted where it lies below -MARGIN
    share       (of complete misses) supported where it reaches down to the paper's, contradicted where it lies above
Everything else is undecided, with the number of patients that would decide it if the effect stayed as it is. So is what
was measured on models that have learned next to nothing (Dice under LEARNED): two that miss everything are not alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from bench.errors import UserError
from experiments.paper import TABLE_1, TABLE_2, TABLES_3_TO_8
from reports.aggregate import Scores, misses, per_case, score
from reports.grid import Grid, check_grid
from reports.load import SuiteResults, load_suite
from reports.statistics import FEW_PATIENTS, LEVEL, Bootstrap, cluster_bootstrap
from reports.strata import ALL, GROUPS, LARGE, SMALL, members
from reports.tables import Column, Table

MARGIN = 1.0  # points of Dice: "enough" is to lose no more
MISSES = 1.4  # percent; section 4.2
LEARNED = 5.0  # points of Dice


@dataclass(frozen=True)
class Claim:
    """`better` and `worse` are methods of a suite, or (ablation, value).

    gain: what is claimed is the difference on small objects minus that on large ones.
    """

    text: str
    paper: float
    better: str | tuple[str, str]
    worse: str | tuple[str, str]
    rule: Literal["more", "no less"] = "more"
    gain: bool = False


def _table_1(method: str) -> float:
    return TABLE_1["BoltzFormer+Hiera-S"][0] - TABLE_1[method][0]


def _ablation(name: str, better: str, worse: str) -> tuple[float, tuple[str, str], tuple[str, str]]:
    effect = TABLES_3_TO_8[name, better][0] - TABLES_3_TO_8[name, worse][0]
    return effect, (name, better), (name, worse)


def _gain_on_small() -> float:
    small, large = (TABLE_2[size, "BoltzFormer"][0] - TABLE_2[size, "SEEM"][0] for size in ("small", "large"))
    return small - large


SAMPLED, THRESHOLD, FULL = "boltzmann sampling", "0.5 threshold", "full attention"
PIGMA, ENSEMBLE = "with pixel grounded correction", "query ensemble only"
CLAIMS = (
    Claim("BoltzFormer is better than SAM (text)", _table_1("SAM+Hiera-S (text)"), "boltzformer", "sam"),
    Claim("BoltzFormer is better than SAM 2 (text)", _table_1("SAM2+Hiera-S (text)"), "boltzformer", "sam2"),
    Claim("BoltzFormer is better than SEEM (text)", _table_1("SEEM+Hiera-S (text)"), "boltzformer", "seem"),
    Claim("It gains more over SEEM on small objects than on large", _gain_on_small(), "boltzformer", "seem", gain=True),
    Claim("BoltzFormer is better than nnU-Net", _table_1("nnU-Net"), "boltzformer", "nnunet"),
    Claim("Boltzmann sampling is better than a threshold", *_ablation("attention", SAMPLED, THRESHOLD)),
    Claim("A threshold is better than full attention", *_ablation("attention", THRESHOLD, FULL)),
    Claim("Boltzmann sampling is better than full attention", *_ablation("attention", SAMPLED, FULL)),
    Claim("Temperature 1 is no worse than 0.25", *_ablation("temperature", "1", "0.25"), "no less"),
    Claim("Temperature 1 is no worse than 0.5", *_ablation("temperature", "1", "0.5"), "no less"),
    Claim("Temperature 1 is better than 2", *_ablation("temperature", "1", "2")),
    Claim("10% of the tokens are enough (against 50%)", *_ablation("samples", "10%", "50%"), "no less"),
    Claim("10 queries are enough (against 101)", *_ablation("queries", "10", "101"), "no less"),
    Claim("1 query is not enough (against 10)", *_ablation("queries", "10", "1")),
    Claim("The text-conditioned prior helps", *_ablation("prior", "text-conditioned", "unconditioned")),
    Claim("PiGMA helps", *_ablation("pigma", PIGMA, ENSEMBLE)),
)


@dataclass(frozen=True)
class Measured:
    """An effect with its 95% interval and the number of patients behind it (in the size group that has fewer); `dice`:
    of the better of the methods, in percent over all sizes.
    """

    effect: float
    low: float
    high: float
    patients: int
    dice: float


@dataclass(frozen=True)
class Scored:
    """A suite with what its claims are read from."""

    suite: SuiteResults
    grid: Grid
    scores: Scores
    bootstrap: Bootstrap


def claims_table(suites: Sequence[SuiteResults], operations: float | None = None) -> Table:
    """Every claim with the first suite that has run what it needs; operations: how many times fewer a sampled
    cross-attention counted in `bench profile`, None where that was not run.
    """
    lines, scored = [], [_scored(suite) for suite in suites]
    for claim in CLAIMS:
        found = next(filter(None, (_measure(claim, suite) for suite in scored)), None)
        lines.append({"claim": claim.text, "paper": claim.paper, "unit": "points"} | _line(found, claim.rule))
    misses = next(filter(None, (_misses(suite) for suite in scored)), None)
    lines.append({"claim": "BoltzFormer misses 1.4% of the targets completely", "paper": MISSES, "unit": "%"})
    lines[-1] |= _line(misses, "share")
    cost = {"claim": "Attention is an order of magnitude cheaper", "paper": 10.0, "unit": "x"}
    verdict = "not run" if operations is None else "supported" if operations >= 10 else "contradicted"
    lines.append(cost | {"ours": operations, "verdict": verdict})
    columns = (
        Column("claim", "Claim"),
        Column("unit", "unit"),
        Column("paper", "Paper", 1),
        Column("ours", "Ours", 1),
        Column("low", "low", 1),
        Column("high", "high", 1),
        Column("cases", "Cases", 0),
        Column("verdict", "Verdict"),
    )
    caption = (
        "Effects in points of Dice with 95% intervals over the cases, which are patients, weighted as in the tables; "
        "the paper's at its own scale. More: supported where the interval lies above 0, contradicted where it lies "
        f"below. Enough or no worse: the same with -{MARGIN:g} point for 0. Misses: supported where the interval "
        "reaches down to the paper's share. Cheaper: counted operations of one cross-attention layer (bench profile), "
        "at least 10 times fewer. Undecided: with the patients that would decide it if the effect stayed as it is; "
        f"always with fewer than {FEW_PATIENTS} patients that have objects of the sizes compared, and where no method "
        f"compared reaches {LEARNED:g} points of Dice. Intervals hold no choice of seeds."
    )
    phantom = any(suite.phantom for suite in suites)
    frame = pd.DataFrame(lines, columns=[column.key for column in columns])
    return Table("claims", "The paper's claims", caption, frame, columns, phantom)


def related(results: SuiteResults) -> list[SuiteResults]:
    """The suite, and the ablations beside it that were run on the same split at the same scale."""
    found = [results]
    for file in sorted(results.folder.absolute().parent.glob("*/suite.json")):
        if file.parent == results.folder.absolute():
            continue
        try:
            other = load_suite(file.parent)
        except UserError:  # its own report says what is wrong with it
            continue
        if other.ablations and (other.split_hash, other.profile) == (results.split_hash, results.profile):
            found.append(other)
    return found


def fewer_operations(profile: Path) -> float | None:
    """How many times fewer operations `bench profile` counted in one sampled cross-attention layer of 128 x 128 tokens
    and 10 queries at 10%, than in the plain one; None where its profile.csv is not there.
    """
    try:
        frame = pd.read_csv(profile)
        layer = frame[(frame["scope"] == "attention") & (frame["phase"] == "forward") & (frame["dtype"] == "fp32")]
        layer = layer[(layer["tokens"] == 128 * 128) & (layer["queries"] == 10) & (layer["sampling"] == 0.1)]
        operations = layer.groupby("path")["gflop"].first()
        return float(operations["plain"] / operations["auto"])
    except (OSError, ValueError, KeyError):
        return None


def verdict(found: Measured, rule: str) -> str:
    """ "supported", "contradicted", or "undecided" with the number of patients that would decide it."""
    if found.patients < FEW_PATIENTS:
        return f"undecided: {found.patients} patients have such objects, an interval needs {FEW_PATIENTS}"
    if found.dice < LEARNED:
        return f"undecided: trained too little, Dice {found.dice:.1f} at best"
    if rule == "share":
        return "supported" if found.low <= MISSES else "contradicted"
    bound = 0.0 if rule == "more" else -MARGIN
    if found.low > bound:
        return "supported"
    if found.high < bound:
        return "contradicted"
    distance = abs(found.effect - bound)
    half = (found.effect - found.low) if found.effect > bound else (found.high - found.effect)
    if distance <= 1e-9 * half:
        return "undecided: no effect to decide"
    needed = math.ceil(found.patients * (half / distance) ** 2)
    return f"undecided: some {float(f'{needed:.2g}'):,.0f} patients would decide"


def _line(found: Measured | None, rule: str) -> dict[str, object]:
    if found is None:
        return {"verdict": "not run"}
    numbers = {"ours": found.effect, "low": found.low, "high": found.high, "cases": found.patients}
    return numbers | {"verdict": verdict(found, rule)}


def _scored(suite: SuiteResults) -> Scored:
    grid = check_grid(suite)
    scores = score(suite.records, grid)
    return Scored(suite, grid, scores, cluster_bootstrap(scores, members(scores.cases["area_pct"], GROUPS)))


def _measure(claim: Claim, scored: Scored) -> Measured | None:
    """The claim's effect in a suite, on the first backbone that has both; None where one of them is not complete."""
    names = [_row(side, scored.suite) for side in (claim.better, claim.worse)]
    places = None if None in names else _places(names, scored.grid.rows, scored.scores.complete)
    if places is None:
        return None
    bootstrap = scored.bootstrap
    groups = (SMALL, LARGE) if claim.gain else (ALL,)
    signs = (1, -1)
    effect = sum(s * _difference(bootstrap.estimate[None], g, places)[0] for s, g in zip(signs, groups, strict=False))
    draws = sum(s * _difference(bootstrap.draws, g, places) for s, g in zip(signs, groups, strict=False))
    cases = scored.scores.cases
    inside = members(cases["area_pct"], groups)
    patients = min(len(cases.loc[flags, ["dataset", "patient"]].drop_duplicates()) for flags in inside.T)
    dice = bootstrap.estimate[GROUPS.index(ALL), list(places)].max()
    return _interval(effect, draws, patients, dice)


def _difference(values: np.ndarray, group, places: tuple[int, int]) -> np.ndarray:
    """(T, G, R) -> (T,): better minus worse in a size group."""
    inside = values[:, GROUPS.index(group)]
    return inside[:, places[0]] - inside[:, places[1]]


def _misses(scored: Scored) -> Measured | None:
    """The share of BoltzFormer's targets that no pixel of its mask touches, in percent, averaged as Dice is."""
    place = next((place for place, row in enumerate(scored.grid.rows) if row.method == "boltzformer"), None)
    if place is None or not scored.scores.complete[place]:
        return None
    missed = per_case(100 * misses(scored.suite.records), scored.grid)
    scores = replace(scored.scores, dice=missed)
    bootstrap = cluster_bootstrap(scores, members(scores.cases["area_pct"], (ALL,)))
    dice = scored.bootstrap.estimate[GROUPS.index(ALL), place]
    return _interval(bootstrap.estimate[0, place], bootstrap.draws[:, 0, place], sum(bootstrap.clusters), dice)


def _interval(effect: float, draws: np.ndarray, patients: int, dice: float) -> Measured | None:
    draws = draws[np.isfinite(draws)]
    if not len(draws) or not np.isfinite(effect):
        return None
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Measured(float(effect), float(low), float(high), patients, float(dice))


def _row(side: str | tuple[str, str], suite: SuiteResults) -> str | None:
    """The row of a method, or of an ablation's value."""
    if isinstance(side, str):
        return side if side in suite.methods else None
    return suite.ablations.get(side[0], {}).get(side[1])


def _places(names: Sequence[str], rows, complete: np.ndarray) -> tuple[int, int] | None:
    """Both rows on the first backbone they share; a method without one ("-") goes with any."""
    for first, row in enumerate(rows):
        for second, other in enumerate(rows):
            alike = row.backbone == other.backbone or "-" in (row.backbone, other.backbone)
            if [row.method, other.method] == list(names) and alike and complete[first] and complete[second]:
                return first, second
    return None
