"""Dice by modality against a loop over the records; nothing is guessed of other data sets."""

import numpy as np
import pandas as pd
import pytest

from bench.data.prompts import SITES
from reports.aggregate import record_dice
from reports.build import build_report
from reports.modality import MODALITIES, modality_table


def test_the_modality_of_a_paper_data_set_is_the_one_of_its_prompts():
    assert {dataset for dataset, modality in MODALITIES.items() if modality == "MRI"} == {"AMOS22-MRI"}
    assert MODALITIES.keys() == SITES.keys() and set(MODALITIES.values()) == {"CT", "MRI"}


def test_means_by_hand(build):
    random = np.random.default_rng(0)
    rows = [
        {
            "dataset": dataset,
            "patient": f"{place // 2}",
            "image_id": f"{place}",
            "tp": int(random.integers(0, 90)),
            "fn": 90,
        }
        for dataset in ("LIDC-IDRI", "MSD-Lung", "AMOS22-MRI", "X-MRI")
        for place in range(6)
    ]
    rows[0]["fn"] = 900  # a large one
    records = build.frame(rows)
    grid, scores = build.scores(records)
    table = modality_table(build.results(records), grid, scores)
    frame = table.frame.set_index(["modality", "area"])
    records = records.assign(score=record_dice(records), small=records["area_px"] < 100)
    means = {key: part["score"].mean() for key, part in records.astype({"dataset": str}).groupby("dataset")}
    (label,) = (row.label for row in grid.rows)
    assert frame.loc[("CT", "all"), label] == pytest.approx((means["LIDC-IDRI"] + means["MSD-Lung"]) / 2)
    assert frame.loc[("MRI", "all"), label] == pytest.approx(means["AMOS22-MRI"])
    assert frame.loc[("CT", "all"), f"{label} SE"] > 0
    assert frame["support"].tolist() == [12, int(records["small"][:12].sum()), 6, int(records["small"][12:18].sum())]
    assert "No modality is known of X-MRI." in table.caption


def test_no_table_of_one_modality(build, tmp_path):
    suite = build.suite(tmp_path, size=48)  # CT, and a data set that says nothing
    assert "by_modality.md" not in build_report(suite).tables


def test_a_gap_is_shown(build, tmp_path):
    suite = build.suite(tmp_path, size=48, objects={"AMOS22-CT": ["liver"], "AMOS22-MRI": ["liver"]})
    for folder in suite.glob("sam-*"):
        build.change(folder / "status.json", state="failed", error="x", fit=None)
    frame = pd.read_csv(build_report(suite).tables["by_modality.csv"])
    assert frame["SAM+Hiera-XT"].tolist() == ["failed"] * 4 and len(frame) == 4
