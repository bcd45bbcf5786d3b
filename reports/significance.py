"""Is a difference real? Rank tests over patients, corrected for their number, ranks, and how stable they are.

The patient is the independent unit: each gives one number per row, the mean Dice of its cases. Patients of all data
sets are pooled, each counting once, where the tables' averages count each data set once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.aggregate import Scores
from reports.grid import Row
from reports.statistics import LEVEL, Bootstrap, half_width, references

ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Ranking:
    """Friedman's test over N patients and K complete rows, with Nemenyi's comparison of all pairs.

    places: (K,) places of the rows in the grid; ranks: (K,) mean ranks, 1 is best; p: of Friedman's test, NaN for
    fewer than three rows; pairs: (K, K) Nemenyi's p values; patients: N.
    """

    places: np.ndarray
    ranks: np.ndarray
    p: float
    pairs: np.ndarray
    patients: int


def patient_means(scores: Scores, inside: np.ndarray) -> np.ndarray:
    """(N, R) mean Dice of each patient over its cases of the group, `inside` (C,) bool; NaN where a row has a gap.

    Patients without such a case are left out. A case that has no Dice for one row (truth and prediction empty) is left
    out for all rows: pairs stay pairs.
    """
    complete = scores.complete
    usable = inside & ~np.isnan(scores.dice[:, complete]).any(axis=1)
    if not complete.any() or not usable.any():
        return np.empty((0, scores.dice.shape[1]))
    cases = scores.cases.loc[usable]
    codes = cases.groupby(["dataset", "patient"], sort=True).ngroup().to_numpy()
    means = pd.DataFrame(scores.dice[usable]).groupby(codes).mean().to_numpy()
    return np.where(complete, means, np.nan)


def paired_tests(groups: dict[str, np.ndarray], rows: tuple[Row, ...], reference: str | None = None) -> pd.DataFrame:
    """Wilcoxon's signed-rank test of each row against its reference (`references`), two-sided.

    groups: what is tested, objects of some sizes, and the patients' means there (`patient_means`).

    Columns label, reference, and for each name of `groups`: <name>_patients; <name>_effect, the matched-pairs
    rank-biserial correlation (-1 to 1, above 0: the row is better); <name>_p, corrected by Holm over all tests of the
    frame. NaN where there is a gap or no patient with a difference.
    """
    from scipy.stats import wilcoxon
    from statsmodels.stats.multitest import multipletests

    lines = []
    for place, other in references(rows, reference):
        line = {"label": rows[place].label, "reference": rows[other].label}
        for name, means in groups.items():
            difference = means[:, place] - means[:, other]
            changed = difference[np.isfinite(difference) & (difference != 0)]
            line[f"{name}_patients"] = int(np.isfinite(difference).sum())
            line[f"{name}_effect"], line[f"{name}_p"] = np.nan, np.nan
            if len(changed):
                positive = wilcoxon(changed, alternative="greater").statistic  # the sum of ranks above 0
                line[f"{name}_effect"] = 4 * positive / (len(changed) * (len(changed) + 1)) - 1
                line[f"{name}_p"] = wilcoxon(changed).pvalue
        lines.append(line)
    frame = pd.DataFrame(lines)
    names = [f"{name}_p" for name in groups]
    values = frame.reindex(columns=names).to_numpy(dtype=np.float64, copy=True)
    tested = np.isfinite(values)
    if tested.any():
        values[tested] = multipletests(values[tested], method="holm")[1]
        frame[names] = values
    return frame


def ranking(means: np.ndarray) -> Ranking:
    """Friedman's test with Nemenyi's post-hoc test on (N, R) patients' means; ties share their mean rank."""
    from scipy.stats import friedmanchisquare, rankdata

    places = np.flatnonzero(np.isfinite(means).all(axis=0) & (len(means) > 0))
    dice = means[:, places]
    count = len(places)
    pairs, p = np.ones((count, count)), np.nan
    if count > 2 and len(dice) > 1 and np.ptp(dice, axis=1).any():
        from scikit_posthocs import posthoc_nemenyi_friedman

        p = float(friedmanchisquare(*dice.T).pvalue)
        pairs = posthoc_nemenyi_friedman(dice).to_numpy()
    ranks = rankdata(-dice, axis=1).mean(axis=0) if len(dice) else np.full(count, np.nan)
    return Ranking(places, ranks, p, pairs, len(dice))


def rank_stability(bootstrap: Bootstrap, rows: tuple[Row, ...], group: int) -> pd.DataFrame:
    """How often each row has which rank over the draws of the bootstrap, by the score of size group `group`.

    Columns label, rank (of the estimate, 1 is best), rank_low, rank_high (95% interval) and first (share of draws in
    which it is best, percent). Rows with a gap have NaN and take no rank.
    """
    from scipy.stats import rankdata

    estimate, draws = bootstrap.estimate[group], bootstrap.draws[:, group]
    known = np.isfinite(estimate)
    drawn = draws[:, known]
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    frame = pd.DataFrame({"label": [row.label for row in rows]})
    for name in ("rank", "rank_low", "rank_high", "first"):
        frame[name] = np.nan
    if known.any() and len(drawn):
        ranks = rankdata(-drawn, axis=1, method="min")
        low, high = np.quantile(ranks, [ALPHA / 2, 1 - ALPHA / 2], axis=0, method="closest_observation")
        frame.loc[known, "rank"] = rankdata(-estimate[known], method="min")
        frame.loc[known, "rank_low"], frame.loc[known, "rank_high"] = low, high
        frame.loc[known, "first"] = 100 * (ranks == 1).mean(axis=0)
    return frame


def seed_components(by_seed: np.ndarray, patient_error: np.ndarray) -> pd.DataFrame:
    """Mean over seeds, and the two parts of its uncertainty: the patients drawn and the seeds trained.

    by_seed: (R, S) score of each row and seed in percent, NaN where there is none; patient_error: (R,) standard error
    of the mean over seeds from the bootstrap over patients. Columns mean, seeds, sd (over seeds, n - 1), patient_se,
    se = sqrt(patient_se^2 + sd^2 / seeds), and low, high: the 95% interval (`half_width`). One seed says nothing of
    seeds: sd and what needs it are NaN.
    """
    seeds = np.isfinite(by_seed).sum(axis=1)
    mean = np.array([np.nanmean(row) if count else np.nan for row, count in zip(by_seed, seeds, strict=True)])
    sd = np.array([np.nanstd(row, ddof=1) if n > 1 else np.nan for row, n in zip(by_seed, seeds, strict=True)])
    half = half_width(patient_error, sd, np.maximum(seeds, 1), seeds - 1)
    se = np.sqrt(patient_error**2 + sd**2 / np.maximum(seeds, 1))
    columns = {"mean": mean, "seeds": seeds, "sd": sd, "patient_se": patient_error, "se": se}
    return pd.DataFrame(columns | {"low": mean - half, "high": mean + half})
