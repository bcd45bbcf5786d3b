"""Beside Dice: IoU, contours, missed targets, lesions found and invented, and whether a method knows when it is
right. The rule for empty masks stands in `bench.metrics`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from reports.aggregate import Scores, misses, per_case, record_dice
from reports.frame import COUNTS
from reports.grid import Grid
from reports.load import SuiteResults
from reports.statistics import cluster_bootstrap
from reports.strata import ALL, SMALL, members
from reports.tables import Column, Table, highlight

SURFACES = {"nsd_1": "NSD 1 px", "nsd_2": "NSD 2 px", "nsd_4": "NSD 4 px"}
RIGHT = 50.0  # percent of Dice from which on a mask counts as right
BINS = 10  # of the calibration error


def quality_table(results: SuiteResults, grid: Grid, scores: Scores) -> Table:
    """IoU, NSD, HD95 and complete misses, on all and on small objects; without those that no run has recorded."""
    records = results.records
    columns = {"iou": iou_percent(record_dice(records))} | {key: 100 * records[key].to_numpy() for key in SURFACES}
    columns |= {"hd95": records["hd95"].to_numpy(), "missed": 100 * misses(records)}
    columns = {key: values for key, values in columns.items() if np.isfinite(values).any()}
    inside = members(scores.cases["area_pct"], (ALL, SMALL))
    frame = pd.DataFrame({"method": [row.label for row in grid.rows]})
    gaps = [row.gap for row in grid.rows]
    for key, values in columns.items():
        bootstrap = cluster_bootstrap(replace(scores, dice=per_case(values, grid)), inside)
        for place, prefix in enumerate(("", "small_")):
            estimate = bootstrap.estimate[place]
            frame[f"{prefix}{key}"] = [g if np.isnan(v) else v for g, v in zip(gaps, estimate, strict=True)]
            frame[f"{prefix}{key} SE"] = bootstrap.standard_error[place]
    titles = {"iou": "IoU"} | SURFACES | {"hd95": "HD95, px", "missed": "missed, %"}
    shown = [
        Column(f"{prefix}{key}", f"{title}{where}", 1, beside=f"{prefix}{key} SE", narrow=not prefix)
        for prefix, where in (("", ""), ("small_", " (small)"))
        for key, title in titles.items()
        if key in columns
    ]
    caption = (
        "Intersection over union in percent; where recorded, normalised surface Dice (NSD) in percent at tolerances of "
        "1, 2 and 4 px of the original image and the 95th percentile of the Hausdorff distance in px over the masks "
        "where both contours are there; and the share of targets of which no pixel was found. Weighted as in the table "
        "by size, with standard errors over patients. An empty mask has IoU and NSD 0 and no distance; where truth and "
        "mask are both empty nothing counts. Best IoU and NSD bold."
    )
    shown.insert(0, Column("method", "Method"))
    table = Table("quality", "Overlap, contours and missed targets", caption, frame, tuple(shown), results.phantom)
    best = [key for key in ("iou", *SURFACES) if key in columns]
    return highlight(table, "column", [f"{prefix}{key}" for prefix in ("", "small_") for key in best])


def iou_percent(dice: np.ndarray) -> np.ndarray:
    """Intersection over union from Dice, both in percent: tp / (tp + fp + fn) = D / (2 - D) for D in 0..1."""
    return 100 * dice / (200 - dice)


def detection_table(results: SuiteResults, grid: Grid) -> Table | None:
    """Lesions found and invented, and how confidence goes with Dice; None where no run has recorded lesions."""
    used = ["dataset", *COUNTS, "dice", "confidence", "lesions", "found", "detections", "hits"]
    records = results.records[used]
    if not records["lesions"].notna().any():
        return None
    lines = []
    for place, row in enumerate(grid.rows):
        mine = records[grid.row_code == place]
        by_dataset = (
            [_detection(part) for _, part in mine.groupby("dataset", sort=True, observed=True)] if len(mine) else []
        )
        means = pd.DataFrame(by_dataset).mean() if by_dataset else pd.Series(dtype=np.float64)
        complete = bool(grid.present[:, place].all()) and len(grid.cases) > 0
        keys = ("recall", "precision", "f1", "average_precision", "calibration")
        lines.append({"method": row.label} | {key: means.get(key, np.nan) if complete else row.gap for key in keys})
    columns = (
        Column("method", "Method"),
        Column("recall", "Lesion recall", 1),
        Column("precision", "Lesion precision", 1),
        Column("f1", "F1", 1),
        Column("average_precision", "AP of confidence", 1),
        Column("calibration", "Calibration error", 1),
    )
    caption = (
        "Percent, unweighted mean over data sets, seeds pooled. Recall: connected parts of the truth that the mask "
        "touches; precision: connected parts of the mask that touch the truth. AP: how well a mask's confidence (mean "
        f"probability over its pixels) ranks masks of {RIGHT:g} Dice or more above the others; calibration error: mean "
        f"distance of confidence and Dice over {BINS} bins of confidence. '-' where a method has no probabilities."
    )
    table = Table("detection", "Lesions and confidence", caption, pd.DataFrame(lines), columns, results.phantom)
    return highlight(table, "column", ["recall", "precision", "f1", "average_precision"])


def _detection(records: pd.DataFrame) -> dict[str, float]:
    """Of one row on one data set, in percent; NaN where nothing can be said."""
    from sklearn.metrics import average_precision_score

    total = {name: records[name].sum() for name in ("lesions", "found", "detections", "hits")}
    recall = total["found"] / total["lesions"] if total["lesions"] else np.nan
    precision = total["hits"] / total["detections"] if total["detections"] else np.nan
    f1 = 2 * recall * precision / (recall + precision) if recall + precision > 0 else 0.0
    f1 = np.nan if np.isnan(recall) or np.isnan(precision) else f1
    dice, confidence = record_dice(records), records["confidence"].to_numpy(dtype=np.float64)
    known = np.isfinite(dice) & np.isfinite(confidence)
    ranked = calibration = np.nan
    if known.any():
        right = dice[known] >= RIGHT
        ranked = average_precision_score(right, confidence[known]) if right.any() else np.nan
        calibration = calibration_error(confidence[known], dice[known] / 100)
    values = {
        "recall": recall,
        "precision": precision,
        "f1": f1,
        "average_precision": ranked,
        "calibration": calibration,
    }
    return {name: 100 * value for name, value in values.items()}


def calibration_error(confidence: np.ndarray, dice: np.ndarray) -> float:
    """Mean distance between the mean confidence and the mean Dice (both (n,) in 0..1) of equal bins of confidence,
    weighted by their number of masks: the expected calibration error with Dice for being right.
    """
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(places, confidence, minlength=BINS) - np.bincount(places, dice, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))
