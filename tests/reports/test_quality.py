"""Contours, misses, lesions and confidence in tables, against loops over the records."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from reports.aggregate import score
from reports.build import build_report
from reports.grid import check_grid
from reports.load import load_suite
from reports.quality import calibration_error, detection_table, quality_table


@pytest.fixture
def suite(build, tmp_path):
    return build.suite(tmp_path, size=48, patients=5, seeds=(0, 1))


def loaded(suite):
    results = load_suite(suite)
    grid = check_grid(results)
    return results, grid, score(results.records, grid)


def test_contours_and_misses_are_means_over_data_sets(suite):
    results, grid, scores = loaded(suite)
    frame = quality_table(results, grid, scores).frame.set_index("method")
    counts = results.records
    iou = counts["tp"] / (counts["tp"] + counts["fp"] + counts["fn"])
    records = counts.assign(missed=(counts["tp"] == 0).astype(float), iou=iou)
    for method, label in {"boltzformer": "BoltzFormer+Hiera-XT", "nnunet": "nnU-Net"}.items():
        mine = records[records["method"] == method]
        cases = mine.groupby(["dataset", "image_id", "object"])[["iou", "nsd_1", "nsd_4", "hd95", "missed"]].mean()
        means = cases.groupby("dataset").mean().mean()
        for name, factor in (("iou", 100), ("nsd_1", 100), ("nsd_4", 100), ("hd95", 1), ("missed", 100)):
            assert frame.loc[label, name] == pytest.approx(factor * means[name]), name
    assert (frame["nsd_1"] < frame["nsd_4"]).all() and (frame["nsd_1 SE"] > 0).all()


def test_lesions_by_hand(build):
    """Two data sets; one method finds 3 of 4 lesions with 1 of 5 parts invented in one, all in the other."""
    rows = []
    for dataset, patient, numbers in (("d", "p", (3, 2, 3, 2)), ("d", "q", (1, 1, 2, 2)), ("e", "r", (2, 2, 2, 2))):
        counts = dict(zip(("lesions", "found", "detections", "hits"), numbers, strict=True))
        rows.append({"dataset": dataset, "patient": patient, "image_id": patient, "tp": 9, "fn": 1, **counts})
    frame = build.frame(rows)
    results = build.results(frame)
    line = detection_table(results, check_grid(results)).frame.iloc[0]
    recall, precision = (3 / 4 + 1) / 2, (4 / 5 + 1) / 2
    assert line["recall"] == pytest.approx(100 * recall) and line["precision"] == pytest.approx(100 * precision)
    assert line["f1"] == pytest.approx(100 * (2 * 0.75 * 0.8 / 1.55 + 1) / 2)
    assert np.isnan(line["average_precision"])  # no confidences


def test_confidence_against_scikit_learn(build):
    random = np.random.default_rng(0)
    rows = []
    for index in range(60):
        tp = int(random.integers(0, 60))
        confidence = np.clip(tp / 60 + random.normal(0, 0.2), 0, 1)
        rows.append({"image_id": f"{index}", "patient": f"{index}", "tp": tp, "fn": 60 - tp, "confidence": confidence})
        rows[-1] |= {"lesions": 1, "found": int(tp > 0), "detections": 1, "hits": int(tp > 0)}
    frame = build.frame(rows)
    results = build.results(frame)
    line = detection_table(results, check_grid(results)).frame.iloc[0]
    dice = 2 * frame["tp"] / (2 * frame["tp"] + frame["fn"])
    expected = average_precision_score(dice >= 0.5, frame["confidence"])
    assert line["average_precision"] == pytest.approx(100 * expected) and 50 < line["average_precision"] < 100
    slow = 0.0
    for low in np.arange(10) / 10:
        inside = (frame["confidence"] >= low) & ((frame["confidence"] < low + 0.1) | (low == 0.9))
        if inside.any():
            slow += inside.sum() * abs(frame["confidence"][inside].mean() - dice[inside].mean())
    assert line["calibration"] == pytest.approx(100 * slow / 60)


def test_perfect_calibration_has_no_error():
    values = np.linspace(0, 1, 11)
    assert calibration_error(values, values) == 0
    assert calibration_error(np.full(4, 0.9), np.array([1.0, 1.0, 0.0, 0.0])) == pytest.approx(0.4)


def test_runs_of_before_contours_were_kept(suite):
    """Records of version 1 have none of it: the tables are not there, the others are."""
    for path in suite.glob("*/records.parquet"):
        records = pd.read_parquet(path).drop(
            columns=["nsd_1", "nsd_2", "nsd_4", "hd95", "lesions", "found", "detections", "hits", "confidence", "dice"]
        )
        records.assign(schema_version=np.int16(1)).to_parquet(path)
    report = build_report(suite)
    assert "detection.md" not in report.tables and "main_table.md" in report.tables
    header = report.tables["quality.csv"].read_text().splitlines()[0]
    assert header == "method,iou,iou SE,missed,missed SE,small_iou,small_iou SE,small_missed,small_missed SE,data"


def test_a_gap_is_shown(suite, build):
    for folder in suite.glob("sam-*"):
        build.change(folder / "status.json", state="failed", error="x", fit=None)
    report = build_report(suite)
    for name in ("quality", "detection"):
        frame = pd.read_csv(report.tables[f"{name}.csv"]).set_index("method")
        assert frame.loc["SAM+Hiera-XT"].iloc[0] == "failed"
    assert frame.loc["nnU-Net", "average_precision"] == "-" and float(frame.loc["nnU-Net", "recall"]) > 0
