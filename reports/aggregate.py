"""From counts to scores: Dice per case, means per data set, object and size group. All vectorised."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import sparse

from experiments.paper import TABLE_9
from reports.grid import Grid
from reports.strata import area_percent


@dataclass(frozen=True)
class Scores:
    """Dice of C cases for R rows, averaged over seeds.

    cases: the grid's frame with `area_pct`; dice: (C, R) float64 percent, NaN in a gap and where truth and
    prediction are both empty; by_seed: (S, C, R) the same of each seed, ascending; present: (C, R) bool; complete:
    (R,) bool, rows that have every case of every data set (only these get an average); seconds: (R,) mean seconds per
    prompt; both_empty: (R,) int64, records without Dice (published ones that give none, too).
    """

    cases: pd.DataFrame
    dice: np.ndarray
    by_seed: np.ndarray
    present: np.ndarray
    complete: np.ndarray
    seconds: np.ndarray
    both_empty: np.ndarray


def only_cases(scores: Scores, inside: np.ndarray) -> Scores:
    """The scores of the cases in `inside`, (C,) bool; which rows are complete, and seconds, stay those of all."""
    cases = scores.cases[inside].reset_index(drop=True)
    return replace(
        scores,
        cases=cases,
        dice=scores.dice[inside],
        by_seed=scores.by_seed[:, inside],
        present=scores.present[inside],
    )


def dice_percent(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """100 * 2tp / (2tp + fp + fn), float64; NaN where prediction and truth are both empty."""
    tp, fp, fn = (np.asarray(count, dtype=np.float64) for count in (tp, fp, fn))
    total = 2 * tp + fp + fn
    return np.divide(200 * tp, total, out=np.full(total.shape, np.nan), where=total > 0)


def record_dice(records: pd.DataFrame) -> np.ndarray:
    """(n,) float64 percent: Dice from the counts of each record, as published where it has none."""
    counted = dice_percent(records["tp"], records["fp"], records["fn"])
    return np.where(records["tp"].isna(), 100 * records["dice"], counted)


def misses(records: pd.DataFrame) -> np.ndarray:
    """(n,) 1 where no pixel of the target was found, else 0; NaN where there is no target, or no counts."""
    tp = records["tp"].to_numpy(dtype=np.float64)
    known = ~np.isnan(tp) & (records["area_px"].to_numpy() > 0)
    return np.where(known, tp == 0, np.nan)


def score(records: pd.DataFrame, grid: Grid) -> Scores:
    """Dice of every case and row of the grid. Seeds are averaged case by case, before anything else."""
    dice = record_dice(records)
    cases = grid.cases.assign(area_pct=area_percent(*(grid.cases[name] for name in ("area_px", "height", "width"))))
    seconds = records["seconds"].to_numpy(dtype=np.float64)
    rows = len(grid.rows)
    timed = ~np.isnan(seconds)
    total = np.bincount(grid.row_code, np.where(timed, seconds, 0.0), minlength=rows)
    return Scores(
        cases=cases,
        dice=per_case(dice, grid),
        by_seed=per_seed(dice, records, grid),
        present=grid.present,
        complete=grid.present.all(axis=0) & (set(grid.cases["dataset"]) == set(grid.datasets)) & (len(cases) > 0),
        seconds=_ratio(total, np.bincount(grid.row_code, timed * 1.0, minlength=rows)),
        both_empty=np.bincount(grid.row_code, np.isnan(dice) * 1.0, minlength=rows).astype(np.int64),
    )


def per_case(values: np.ndarray, grid: Grid) -> np.ndarray:
    """(n,) a number per record -> (C, R) its mean over the seeds that have it, NaN where none has and in a gap."""
    values = np.asarray(values, dtype=np.float64)
    shape = (len(grid.cases), len(grid.rows))
    place = grid.case_code * shape[1] + grid.row_code
    valid = ~np.isnan(values)
    total = np.bincount(place, np.where(valid, values, 0.0), minlength=shape[0] * shape[1])
    mean = _ratio(total, np.bincount(place, valid * 1.0, minlength=shape[0] * shape[1]))
    return np.where(grid.present, mean.reshape(shape), np.nan)


def per_seed(values: np.ndarray, records: pd.DataFrame, grid: Grid) -> np.ndarray:
    """(n,) a number per record -> (S, C, R) of each seed, ascending; NaN where there is none and in a gap."""
    seeds, seed_code = np.unique(records["seed"].to_numpy(), return_inverse=True)
    found = np.full((len(seeds), len(grid.cases), len(grid.rows)), np.nan)
    found[seed_code, grid.case_code, grid.row_code] = values
    found[:, ~grid.present] = np.nan
    return found


def dataset_means(scores: Scores, datasets: tuple[str, ...]) -> np.ndarray:
    """(R, len(datasets)) mean Dice over each data set's cases, all objects pooled; NaN where a case is
    missing."""
    return _means_by(scores, pd.Categorical(scores.cases["dataset"], categories=list(datasets)).codes, len(datasets))


def dataset_average(means: np.ndarray) -> np.ndarray:
    """(R, D) -> (R,): the unweighted mean over data sets (the paper's Avg.), NaN if one is missing."""
    return means.mean(axis=1) if means.shape[1] else np.full(len(means), np.nan)


def per_object(scores: Scores) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Frame (dataset, object, support) of O objects, and their mean and median Dice, (O, R), NaN in a gap."""
    sizes = object_sizes(scores.cases)
    objects = pd.MultiIndex.from_frame(sizes[["dataset", "object"]])
    codes = objects.get_indexer(pd.MultiIndex.from_frame(scores.cases[["dataset", "object"]]))
    medians = pd.DataFrame(scores.dice).groupby(codes).median().reindex(range(len(objects))).to_numpy()
    means = _means_by(scores, codes, len(objects)).T
    frame = sizes[["dataset", "object"]].assign(support=np.bincount(codes, minlength=len(objects)))
    return frame, means, np.where(np.isnan(means), np.nan, medians)


def object_sizes(cases: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table 9 from cases with `dataset`, `object`, `image_id` and `area_pct`.

    Columns dataset, object, area_mean_pct, area_median_pct, area_min_pct, area_max_pct, support (number of
    masks; one mask asked for by several prompts counts once). Rows in the paper's order, then others
    alphabetically.
    """
    masks = cases.drop_duplicates(["dataset", "object", "image_id"])
    frame = masks.groupby(["dataset", "object"], sort=True)["area_pct"].agg(["mean", "median", "min", "max", "size"])
    frame.columns = [*(f"area_{name}_pct" for name in ("mean", "median", "min", "max")), "support"]
    order = {pair: place for place, pair in enumerate(TABLE_9)}
    pairs = sorted(frame.index, key=lambda pair: (order.get(pair, len(order)), pair))
    return frame.loc[pairs].reset_index()


@dataclass(frozen=True)
class ClusterSums:
    """Sums over the patients of one data set: all that a (re)weighted mean needs.

    dice and valid: (K, G, R) sum of Dice and number of cases with Dice; members: (K, G) and size: (K,)
    numbers of cases, for K patients, G size groups, R rows.
    """

    dice: np.ndarray
    valid: np.ndarray
    members: np.ndarray
    size: np.ndarray


def cluster_sums(scores: Scores, groups: np.ndarray) -> list[ClusterSums]:
    """One ClusterSums per data set that has cases, alphabetically; `groups` is (C, G) bool."""
    sums = []
    for _, cases in scores.cases.groupby("dataset", sort=True):
        patients, _ = pd.factorize(cases["patient"], sort=True)
        dice, group = scores.dice[cases.index], groups[cases.index].astype(np.float64)
        valid = ~np.isnan(dice)
        ones = np.ones(len(cases))
        indicator = sparse.csr_array((ones, (patients, np.arange(len(cases)))))

        def per_patient(rows: np.ndarray, group=group, indicator=indicator) -> np.ndarray:
            product = group[:, :, None] * rows[:, None, :]
            return (indicator @ product.reshape(len(rows), -1)).reshape(-1, *product.shape[1:])

        sums.append(
            ClusterSums(
                dice=per_patient(np.where(valid, dice, 0.0)),
                valid=per_patient(valid.astype(np.float64)),
                members=indicator @ group,
                size=indicator @ ones,
            )
        )
    return sums


def group_scores(sums: list[ClusterSums], weights: list[np.ndarray]) -> np.ndarray:
    """Mean Dice per size group with the weighting of the paper's Table 2, under T weightings of the patients.

    The caption: "We calculated the average Dice score for each size group on each dataset in the benchmark
    suite, and reported the dataset average weighted by the ratio of the corresponding size group in each
    dataset." Read as sum_d w_d m_d / sum_d w_d, with m_d the mean Dice over data set d's masks in the group
    and w_d the fraction of data set d's masks that are in the group. For all objects w_d = 1, which is Table
    1's Avg.

    `weights` holds one (T, K_d) array per data set, how often each patient counts; ones give the point
    estimate, draws with replacement the bootstrap. Returns (T, G, R) percent; NaN where a group is empty, or
    has masks but no Dice.
    """
    total = share = 0.0
    for part, weight in zip(sums, weights, strict=True):

        def weighted(values: np.ndarray, weight=weight) -> np.ndarray:
            return (weight @ values.reshape(len(values), -1)).reshape(len(weight), *values.shape[1:])

        members = weighted(part.members)[:, :, None]
        ratio = members / weighted(part.size)[:, None, None]
        mean = _ratio(weighted(part.dice), weighted(part.valid))
        # a data set without masks in the group has no say; one with masks but without any Dice must show
        total = total + np.where(members > 0, ratio * mean, 0.0)
        share = share + ratio
    return _ratio(total, np.broadcast_to(share, np.shape(total)))


def seed_scores(scores: Scores, groups: np.ndarray) -> np.ndarray:
    """(S, G, R) `group_scores` of each seed by itself; NaN where a row was not run with a seed, or has a gap."""
    found = np.full((len(scores.by_seed), groups.shape[1], scores.dice.shape[1]), np.nan)
    for place, dice in enumerate(scores.by_seed):
        sums = cluster_sums(replace(scores, dice=dice), groups)
        if sums:
            found[place] = group_scores(sums, [np.ones((1, len(part.size))) for part in sums])[0]
    found[:, :, ~scores.complete] = np.nan
    return found


def _means_by(scores: Scores, codes: np.ndarray, count: int) -> np.ndarray:
    """(R, count) mean Dice per code, NaN where the code has no case or a case is missing."""
    inside = codes >= 0
    indicator = sparse.csr_array(
        (np.ones(int(inside.sum())), (codes[inside], np.flatnonzero(inside))), shape=(count, len(codes))
    )
    valid = ~np.isnan(scores.dice)
    means = _ratio(indicator @ np.where(valid, scores.dice, 0.0), indicator @ valid.astype(np.float64))
    missing = indicator @ (~scores.present).astype(np.float64)
    return np.where(missing > 0, np.nan, means).T


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Division that gives NaN for nothing over nothing, without a warning."""
    numerator = np.asarray(numerator, dtype=np.float64)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
