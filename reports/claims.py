"""The paper's claims, one by one: its effect, ours with an interval, and a verdict by a stated rule.

Effects are in points of Dice, `better` minus `worse`, unless the claim says otherwise. Verdicts, by the 95% interval
over patients and seeds:
    more        supported where the interval lies above 0, contradicted where it lies below
    no less     supported where it lies above -MARGIN, contradicted where it lies below -MARGIN
    share       (of complete misses) supported where it lies at or below the paper's, contradicted where it lies above
Everything else is undecided, with the number of patients or seeds that would decide it, at even odds, if the effect
stayed as it is. So is what was measured on a model that has learned next to nothing (Dice under LEARNED): two that miss
everything are not alike, and one that was not trained loses to any. And so is what has one seed, for the interval then
holds one training of each; from two on it holds the choice of seeds, too (`reports.statistics.effect_of`). Two or three
seeds tell little of a spread: in a suite of methods a pair's own may be small or large by chance, so what it decides
must hold by that pooled over all decoders (`decoder_spread`), too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from bench.errors import UserError
from bench.suite_folder import read_suite
from reports.aggregate import Scores, misses, per_case, per_seed, score, seed_scores
from reports.grid import Grid, check_grid
from reports.load import SuiteResults, load_suite
from reports.operations import RULE, operation_lines
from reports.paper_claims import ALSO, CLAIMS, Claim
from reports.significance_tables import UNLIKE, decoder_spread, suite_spread
from reports.statistics import FEW_PATIENTS, Bootstrap, Effect, cluster_bootstrap, effect_of, half_width
from reports.strata import ALL, GROUPS, LARGE, SMALL, members
from reports.tables import Column, Table

MARGIN = 1.0  # points of Dice: "enough" is to lose no more
MISSES = 1.4  # percent; section 4.2
CHANCE = 0.025  # of none seen: the upper end of the exact two-sided 95% interval of a share (Clopper and Pearson)
LEARNED = 5.0  # points of Dice
DECIDED = ("supported", "contradicted")
MOST = 100.0  # times the patients or seeds that there are; what would need more is not to be had


@dataclass(frozen=True)
class Measured:
    """An effect and the number of patients behind it (in the size group that has fewer); `dice`: of the worse of the
    methods, in percent over all sizes; pooled: the same with the spread over seeds of all decoders, None where a pair's
    is all there is.
    """

    effect: Effect
    patients: int
    dice: float
    pooled: Effect | None = None


@dataclass(frozen=True)
class Scored:
    """A suite with what its claims are read from: Dice, and the share of targets missed, both in percent.

    by_seed, missed_by_seed: (S, G, R) of `seed_scores`.
    """

    suite: SuiteResults
    grid: Grid
    scores: Scores
    bootstrap: Bootstrap
    by_seed: np.ndarray
    missed: Bootstrap
    missed_by_seed: np.ndarray


def claims_table(suites: Sequence[SuiteResults], profile: Path) -> Table:
    """Every claim with the first suite that has run what it needs; profile: `bench profile`'s profile.csv, which need
    not be there.
    """
    lines, scored = [], [_scored(suite) for suite in suites]
    for claim in CLAIMS:
        found = next(filter(None, (_measure(claim, suite) for suite in scored)), None)
        lines.append({"claim": claim.text, "paper": claim.paper, "unit": "points"} | _line(found, claim.rule))
    missed = next(filter(None, (_misses(suite) for suite in scored)), None)
    lines.append({"claim": "BoltzFormer misses 1.4% of the targets completely", "paper": MISSES, "unit": "%"})
    lines[-1] |= _line(missed, "share")
    lines += operation_lines(profile)
    columns = (
        Column("claim", "Claim"),
        Column("unit", "unit"),
        Column("paper", "Paper", 1),
        Column("ours", "Ours", 2),  # a bound just above 0 must not read 0.0
        Column("low", "low", 2),
        Column("high", "high", 2),
        Column("cases", "Cases", 0),
        Column("seeds", "Seeds", 0),
        Column("verdict", "Verdict"),
    )
    caption = (
        "Effects in points of Dice, of misses in percentage points, with 95% intervals over the cases, which are "
        "patients, weighted as in the tables, and over seeds where there are two or more (Student's t; of ablations "
        f"pooled over all rows but those of {' and '.join(UNLIKE)}); the paper's at its own scale. Better, and fewer: "
        "supported where the interval lies above 0, contradicted where it lies below. Enough or no worse: the same "
        f"with -{MARGIN:g} point for 0. Misses {MISSES:g}%: supported where the interval lies at or below that share, "
        f"contradicted where it lies above; the interval of none at all is the exact binomial one. {RULE} Undecided: "
        "with the patients or seeds that would decide it, at even odds, if the effect stayed as it is (of ablations: "
        f"if all rows had so many seeds); always with fewer than {FEW_PATIENTS} patients that have objects of the "
        f"sizes compared, and where one of the methods compared stays below {LEARNED:g} points of Dice; with one seed, "
        "whose interval holds no choice of seeds: what it says of the patients alone stands beside; and where a pair's "
        "own spread over seeds and that of all decoders do not say the same. Each claim has an interval of its own: of "
        "so many, one in twenty may miss the truth."
    )
    phantom = any(suite.phantom for suite in suites)
    frame = pd.DataFrame(lines, columns=[column.key for column in columns])
    return Table("claims", "The paper's claims", caption, frame, columns, phantom)


def related(results: SuiteResults) -> list[SuiteResults]:
    """The suite, and the ablations beside it that were run on the same split at the same scale, by the same recipe."""
    found = [results]
    for file in sorted(results.folder.absolute().parent.glob("*/suite.json")):
        if file.parent == results.folder.absolute():
            continue
        try:
            other = read_suite(file.parent)
            same_scale = (other["split_hash"], other["profile"]) == (results.split_hash, results.profile)
            if same_scale and other.get("ablations"):
                beside = load_suite(file.parent)
                if _alike(results, beside):
                    found.append(beside.on_common_seeds())
        except UserError:  # its own report says what is wrong with it
            continue
    return found


def _alike(a: SuiteResults, b: SuiteResults) -> bool:
    """Whether what both suites have run is the very same, which a run's id holds: not so with another `--set`."""
    ids, others = ({(run.method, run.backbone, run.seed): run.run_id for run in suite.runs} for suite in (a, b))
    return all(ids[run] == others[run] for run in ids.keys() & others.keys())


def verdict(found: Measured, rule: str) -> str:
    """ "supported", "contradicted", or "undecided" with the number of patients or seeds that would decide it."""
    effect = found.effect
    if found.patients < FEW_PATIENTS or not math.isfinite(effect.estimate):
        return f"undecided: {found.patients} patients have such objects, an interval needs {FEW_PATIENTS}"
    if found.dice < LEARNED:
        return f"undecided: trained too little, to a Dice of {found.dice:.1f}"
    told = _by_interval(effect, found.patients, rule)
    if effect.spread is None:
        return f"undecided: one seed; by patients alone: {told}"
    decided = told in DECIDED
    if found.pooled is not None:
        pooled = _by_interval(found.pooled, found.patients, rule)
        interval = f"{found.pooled.low:.2f} to {found.pooled.high:.2f}"
        if decided and pooled != told:
            return f"undecided: {told} by its own spread over seeds, not by that of all decoders ({interval})"
        if not decided and pooled in DECIDED:
            return f"undecided: {told}; {pooled} by the spread over seeds of all decoders ({interval})"
    return told if decided else f"undecided: {told}"


def _by_interval(effect: Effect, patients: int, rule: str) -> str:
    """ "supported", "contradicted", or what would decide."""
    bound = {"more": 0.0, "no less": -MARGIN, "share": MISSES}[rule]
    if effect.high <= bound if rule == "share" else effect.low > bound:
        return "supported"
    if effect.low > bound if rule == "share" else effect.high < bound:
        return "contradicted"
    if rule == "share" and effect.estimate == 0:
        needed = _rounded(math.log(CHANCE) / math.log(1 - MISSES / 100))
        return f"some {needed} patients without a miss would decide"
    return _needed(effect, patients, bound)


def _needed(effect: Effect, patients: int, bound: float) -> str:
    """What would bring `bound` out of the interval, if the effect stayed: more patients, more seeds, or both."""
    distance = abs(effect.estimate - bound)
    half = (effect.estimate - effect.low) if effect.estimate > bound else (effect.high - effect.estimate)
    if distance <= 1e-9 * half:
        return "no effect to decide"
    if effect.spread is None:
        times = (half / distance) ** 2
        if times > MOST:
            return f"over {MOST:.0f} times the patients would be needed"
        return f"some {_rounded(patients * times)} patients would decide"

    def enough(times: float, seeds: float) -> bool:
        """Whether so many times the patients and the seeds decide."""
        more = effect.seeds * seeds
        freedom = effect.spread.freedom * (more - 1) / (effect.seeds - 1)
        return half_width(effect.patient_se / math.sqrt(times), effect.spread.sd, more, freedom) < distance

    ways = {
        "patients": _least(lambda times: enough(times, 1)),
        "seeds": _least(lambda times: enough(1, times)),
    }
    numbers = {"patients": patients, "seeds": effect.seeds}
    told = [f"{_rounded(numbers[what] * times)} {what}" for what, times in ways.items() if times is not None]
    if told:
        return f"some {' or '.join(told)} would decide"
    both = _least(lambda times: enough(times, times))
    if both is None:
        return f"over {MOST:.0f} times the patients and seeds would be needed"
    told = [f"{_rounded(number * both)} {what}" for what, number in numbers.items()]
    return f"some {' with '.join(told)} would decide"


def _least(enough: Callable[[float], bool]) -> float | None:
    """The least multiple from 1 on, to a hundredth, for which `enough` holds; None where none up to MOST is."""
    low = high = 1.0
    while not enough(high):
        if high >= MOST:
            return None
        low, high = high, min(2 * high, MOST)
    while high - low > 0.01 * low:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _rounded(number: float) -> str:
    """Upwards to a whole number of two digits and noughts."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return f"{math.ceil(round(number / unit, 9)) * unit:,}"


def _line(found: Measured | None, rule: str) -> dict[str, object]:
    if found is None:
        return {"verdict": "not run"}
    effect = found.effect
    numbers = {"ours": effect.estimate, "low": effect.low, "high": effect.high}
    return numbers | {"cases": found.patients, "seeds": effect.seeds, "verdict": verdict(found, rule)}


def _scored(suite: SuiteResults) -> Scored:
    grid = check_grid(suite)
    scores = score(suite.records, grid)
    inside = members(scores.cases["area_pct"], GROUPS)
    missed = 100 * misses(suite.records)
    missing = replace(scores, dice=per_case(missed, grid), by_seed=per_seed(missed, suite.records, grid))
    of_dice, of_misses = ((cluster_bootstrap(part, inside), seed_scores(part, inside)) for part in (scores, missing))
    return Scored(suite, grid, scores, *of_dice, *of_misses)


def _measure(claim: Claim, scored: Scored) -> Measured | None:
    """The claim's effect in a suite, on the first backbone that has both; None where one of them is not complete."""
    names = [_row(side, scored.suite) for side in (claim.better, claim.worse)]
    places = None if None in names else _places(names, scored.grid.rows, scored.scores.complete)
    if places is None:
        return None
    groups = (SMALL, LARGE) if claim.gain else (claim.group,)

    def claimed(values: np.ndarray) -> np.ndarray:
        """(..., G, R) -> (..., R): what is better where it is more, on small objects minus on large where that is
        claimed."""
        by_group = [values[..., GROUPS.index(group), :] for group in groups]
        more = by_group[0] - by_group[1] if claim.gain else by_group[0]
        return -more if claim.misses else more

    def pair(values: np.ndarray) -> np.ndarray:
        return values[..., places[0]] - values[..., places[1]]

    of_dice = (scored.bootstrap, scored.by_seed)
    bootstrap, by_seed = (scored.missed, scored.missed_by_seed) if claim.misses else of_dice
    estimate, draws, seeds = (claimed(values) for values in (bootstrap.estimate, bootstrap.draws, by_seed))
    spread = suite_spread(scored.suite, scored.grid, seeds) if groups == (ALL,) else None
    effect = effect_of(pair(estimate), pair(draws), pair(seeds), spread)
    of_all = None if scored.suite.ablations else decoder_spread(places, scored.grid, seeds)
    pooled = effect_of(pair(estimate), pair(draws), pair(seeds), of_all) if of_all else None
    cases = scored.scores.cases
    inside = members(cases["area_pct"], groups)
    patients = min(len(cases.loc[flags, ["dataset", "patient"]].drop_duplicates()) for flags in inside.T)
    dice = scored.bootstrap.estimate[GROUPS.index(ALL), list(places)]
    return Measured(effect, patients, float(dice.min()), pooled)


def _misses(scored: Scored) -> Measured | None:
    """The share of BoltzFormer's targets that no pixel of its mask touches, in percent, averaged as Dice is."""
    rows, complete = scored.grid.rows, scored.scores.complete
    place = next((p for p, row in enumerate(rows) if row.method == "boltzformer" and complete[p]), None)
    if place is None:
        return None
    missed, group = scored.missed, GROUPS.index(ALL)
    found = (values[..., group, place] for values in (missed.estimate, missed.draws, scored.missed_by_seed))
    effect = effect_of(*found)
    patients = sum(missed.clusters)
    # Student's t knows no bounds, and patients without a miss, drawn anew, have none again
    high = 100 * (1 - CHANCE ** (1 / patients)) if effect.estimate == 0 else effect.high
    effect = replace(effect, low=max(effect.low, 0.0), high=high)
    return Measured(effect, patients, float(scored.bootstrap.estimate[group, place]))


def _row(side: str | tuple[str, str], suite: SuiteResults) -> str | None:
    """The row of a method, or of an ablation's value."""
    if isinstance(side, str):
        return side if side in suite.methods else None
    ablated = suite.ablations.get(side[0], {}).get(side[1])
    return ablated or (_row(ALSO[side], suite) if side in ALSO else None)


def _places(names: Sequence[str], rows, complete: np.ndarray) -> tuple[int, int] | None:
    """Both rows on the first backbone they share; a method without one ("-") goes with any."""
    for first, row in enumerate(rows):
        for second, other in enumerate(rows):
            alike = row.backbone == other.backbone or "-" in (row.backbone, other.backbone)
            if [row.method, other.method] == list(names) and alike and complete[first] and complete[second]:
                return first, second
    return None
