"""Uncertainty: bootstrap over patients, standard errors, and paired differences to a reference method."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd

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


def differences(
    bootstrap: Bootstrap, rows: tuple[Row, ...], names: dict[str, int], reference: str | None = None
) -> pd.DataFrame:
    """Paired difference of every other row to its reference (`references`), one line per row.

    `names` maps a column prefix to the size group. Columns label, reference, and for each prefix <prefix>,
    <prefix>_low, <prefix>_high: row minus reference in points of Dice with the 95% percentile interval.
    """
    lines = []
    for place, other in references(rows, reference):
        line = {"label": rows[place].label, "reference": rows[other].label}
        for name, group in names.items():
            drawn = bootstrap.draws[:, group, place] - bootstrap.draws[:, group, other]
            drawn = drawn[np.isfinite(drawn)]
            low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(drawn) else (np.nan, np.nan)
            line[name] = bootstrap.estimate[group, place] - bootstrap.estimate[group, other]
            line[f"{name}_low"], line[f"{name}_high"] = low, high
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
