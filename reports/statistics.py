"""Uncertainty: bootstrap over patients, spread over seeds, and paired differences to a reference method.

A difference between two trained methods is uncertain for two reasons: other patients could have been tested, and other
seeds trained. Patients are drawn anew (bootstrap); seeds are few and costly, so they enter by their standard deviation
and Student's t. With one seed an interval holds the patients alone, and whoever shows it says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from reports.aggregate import Scores, cluster_sums, group_scores
from reports.grid import Row

DRAWS = 10_000
LEVEL = 0.95
FEW_PATIENTS = 10  # below, a bootstrap over patients gives too small a standard error


@dataclass(frozen=True)
class Bootstrap:
    """Scores of G size groups and R rows: estimate (G, R) and draws (T, G, R), percent; NaN for rows with a
    gap.

    `clusters` is the number of patients drawn from, data set by data set.
    """

    estimate: np.ndarray
    draws: np.ndarray
    clusters: tuple[int, ...]

    @property
    def standard_error(self) -> np.ndarray:
        """(G, R) standard deviation over the draws that have a mask of the group; NaN where fewer than half do."""
        there = np.isfinite(self.draws)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a row with a gap: no draw at all
            return np.where(there.mean(axis=0) > 0.5, np.nanstd(self.draws, axis=0, ddof=1), np.nan)


def cluster_bootstrap(scores: Scores, groups: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Bootstrap:
    """Draws patients with replacement within each data set and recomputes `group_scores`.

    groups: (C, G) bool. Slices of one patient are not independent, so the patient is what is drawn. All rows
    see the same draws, which makes differences between rows paired. Seeds were averaged case by case before,
    so the standard error is that of the mean over the seeds that were run: it holds the sampling of patients,
    and no separate term for the sampling of seeds.
    """
    generator = np.random.default_rng(seed)
    sums = cluster_sums(scores, groups)
    clusters = tuple(len(part.size) for part in sums)
    if not sums:
        shape = (groups.shape[1], scores.dice.shape[1])
        return Bootstrap(np.full(shape, np.nan), np.full((draws, *shape), np.nan), clusters)
    estimate = group_scores(sums, [np.ones((1, k)) for k in clusters])[0]
    weights = [generator.multinomial(k, np.full(k, 1 / k), size=draws).astype(np.float64) for k in clusters]
    gap = ~scores.complete
    estimate[:, gap] = np.nan
    sample = group_scores(sums, weights)
    sample[:, :, gap] = np.nan
    return Bootstrap(estimate, sample, clusters)


@dataclass(frozen=True)
class Spread:
    """How far a number moves from seed to seed: its standard deviation, and the degrees of freedom it is known with."""

    sd: float
    freedom: float


@dataclass(frozen=True)
class Effect:
    """A number with its 95% interval, and what the interval is made of, all in points.

    patient_se: standard error over the patients tested; seeds: how many were trained; spread: of the number over
    seeds, None with one seed: then the interval is that of the patients alone.
    """

    estimate: float
    low: float
    high: float
    patient_se: float
    seeds: int = 1
    spread: Spread | None = None


def effect_of(estimate: float, draws: np.ndarray, by_seed: np.ndarray, pooled: Spread | None = None) -> Effect:
    """The interval of a number from its (T,) draws over patients and its (S,) values, one per seed; NaN is left out.

    One seed: the draws' 95% percentiles. More: the estimate plus and minus `half_width`, with the spread of `by_seed`,
    or `pooled` where seeds of more rows than these tell of the same spread.
    """
    draws, by_seed = draws[np.isfinite(draws)], by_seed[np.isfinite(by_seed)]
    if not len(draws) or not np.isfinite(estimate):
        return Effect(np.nan, np.nan, np.nan, np.nan)
    error = float(np.std(draws, ddof=1))
    if len(by_seed) < 2:
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Effect(float(estimate), float(low), float(high), error)
    spread = pooled or Spread(float(np.std(by_seed, ddof=1)), len(by_seed) - 1)
    half = float(half_width(error, spread.sd, len(by_seed), spread.freedom))
    return Effect(float(estimate), estimate - half, estimate + half, error, len(by_seed), spread)


def half_width(patient_se: ArrayLike, sd: ArrayLike, seeds: ArrayLike, freedom: ArrayLike) -> np.ndarray:
    """Half of the 95% interval of a mean over `seeds` whose standard deviation `sd` has `freedom` degrees of freedom.

    Student's t times sqrt(patient_se^2 + sd^2 / seeds), with Satterthwaite's degrees of freedom for the sum (those of
    the patients are taken as many).
    """
    from scipy.stats import t

    of_seeds = np.asarray(np.square(sd) / seeds)
    variance = np.square(patient_se) + of_seeds
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.where(of_seeds > 0, freedom * np.square(variance / of_seeds), np.inf)
    return t.ppf((1 + LEVEL) / 2, total) * np.sqrt(variance)


def pooled_spread(by_seed: np.ndarray) -> Spread | None:
    """The spread over seeds of a difference between any two of R rows that are alike in it, from their (S, R) scores.

    The residual of rows x seeds: what remains of a score when its row's and its seed's mean are taken off. The
    difference of two rows varies by sqrt(2) of its standard deviation, with (S - 1)(R - 1) degrees of freedom. Rows
    that lack a seed are left out; None where fewer than two seeds or rows remain.
    """
    found = rows_by_seeds(by_seed)
    return None if found is None else Spread(float(np.sqrt(2) * found.sd), found.freedom[1])


@dataclass(frozen=True)
class RowTest:
    """Do R rows differ by more than two trainings of one row? The analysis of variance of rows x seeds.

    rows: how many; sd: standard deviation of one training about its row's and its seed's mean, in points; f: the mean
    square between rows over that of the rest, with `freedom`; p: of F that large if all rows were one.
    """

    rows: int
    sd: float
    f: float
    freedom: tuple[int, int]
    p: float


def rows_by_seeds(by_seed: np.ndarray) -> RowTest | None:
    """`RowTest` of (S, R) scores; rows that lack a seed are left out. None where less than two seeds or rows remain."""
    from scipy.stats import f

    values = by_seed[:, np.isfinite(by_seed).all(axis=0)]
    seeds, rows = values.shape
    if seeds < 2 or rows < 2:
        return None
    means = values.mean(axis=0)
    rest = values - means - values.mean(axis=1, keepdims=True) + values.mean()
    freedom = (rows - 1, (seeds - 1) * (rows - 1))
    between, chance = seeds * ((means - means.mean()) ** 2).sum() / freedom[0], (rest**2).sum() / freedom[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = between / chance
    return RowTest(rows, float(np.sqrt(chance)), float(ratio), freedom, float(f.sf(ratio, *freedom)))


def differences(
    bootstrap: Bootstrap,
    rows: tuple[Row, ...],
    names: dict[str, int],
    reference: str | None = None,
    by_seed: np.ndarray | None = None,
    pooled: Mapping[str, Spread | None] | None = None,
    unlike: Set[str] = frozenset(),
) -> pd.DataFrame:
    """Paired difference of every other row to its reference (`references`), one line per row.

    `names` maps a column prefix to the size group. Columns label, reference, and for each prefix <prefix>,
    <prefix>_low, <prefix>_high: row minus reference in points of Dice with its 95% interval (`effect_of`).
    by_seed: (S, G, R) of `seed_scores`, None for the patients alone; pooled: the spread by prefix, where more rows than
    two tell of it (`pooled_spread`); unlike: methods of rows that it does not tell of.
    """
    if by_seed is None:
        by_seed = np.empty((0, *bootstrap.estimate.shape))
    lines = []
    for place, other in references(rows, reference):
        line = {"label": rows[place].label, "reference": rows[other].label}
        shared = {} if pooled is None or {rows[place].method, rows[other].method} & unlike else pooled
        for name, group in names.items():
            estimate, drawn, seeds = (
                values[..., group, place] - values[..., group, other]
                for values in (bootstrap.estimate, bootstrap.draws, by_seed)
            )
            effect = effect_of(estimate, drawn, seeds, shared.get(name))
            line |= {name: effect.estimate, f"{name}_low": effect.low, f"{name}_high": effect.high}
        lines.append(line)
    return pd.DataFrame(lines)


def references(rows: tuple[Row, ...], reference: str | None = None) -> list[tuple[int, int]]:
    """(place of a row, place of the row it is compared with) for every row of another method than `reference`.

    Rows are compared on the same backbone, or with the reference's first row where it has none on that backbone;
    `reference` None, or a method that is not there, is the first.
    """
    if not rows:
        return []
    method = reference if reference in {row.method for row in rows} else rows[0].method
    places = [place for place, row in enumerate(rows) if row.method == method]
    on_backbone = {rows[place].backbone: place for place in reversed(places)}
    return [(place, on_backbone.get(row.backbone, places[0])) for place, row in enumerate(rows) if row.method != method]
