"""Spread of Dice over phrasings: numbers by hand, and a report of a suite that was asked."""

import numpy as np
import pandas as pd
import pytest

from bench.records import PHRASINGS_FILE, RECORD_COLUMNS, write_table
from reports import robustness
from reports.build import build_report
from reports.grid import check_grid
from reports.load import load_phrasings, load_suite
from reports.robustness import prompt_tables, several_phrasings, spreads


def asked(build, masks, first="nodule", **row):
    """Records of one row: {(patient, image): {phrase: Dice in percent}}; the grid of the first phrasing's alone."""
    rows = []
    for (patient, image), dice in masks.items():
        for prompt, value in dice.items():
            tp = round(value)  # of 100 pixels found and 100 true: Dice is tp
            counts = {"tp": tp, "fp": 100 - tp, "fn": 100 - tp}
            rows.append({"patient": patient, "image_id": image, "prompt": prompt, **counts, **row})
    everything = build.frame(rows)
    return everything, everything[everything["prompt"] == first]


def test_spread_by_hand(build):
    masks = {
        ("p", "1"): {"nodule": 80, "lung nodule": 60, "lesion": 70},
        ("q", "2"): {"nodule": 50, "lung nodule": 50, "lesion": 58},
        ("q", "3"): {"nodule": 90},  # asked once: nothing to compare
    }
    everything, first = asked(build, masks)
    grid = check_grid(build.results(first))
    records = several_phrasings(everything, grid)
    assert set(records["image_id"]) == {"1", "2"} and records["first"].sum() == 2
    spread = spreads(records).droplevel(["method", "backbone", "dataset", "object", "patient"])
    assert spread.loc["1"].tolist() == pytest.approx([80, 70, 10, 20, 100])
    assert spread.loc["2"].tolist() == pytest.approx([50, 158 / 3, np.std([50, 50, 58], ddof=1), 8, 0])


def test_each_seed_has_its_own_spread(build):
    """Two models that each prefer another phrasing: averaging their Dice first would hide it."""
    one, first = asked(build, {("p", "1"): {"nodule": 80, "lesion": 40}}, seed=0)
    two, other = asked(build, {("p", "1"): {"nodule": 40, "lesion": 80}}, seed=1)
    grid = check_grid(build.results(pd.concat([first, other])))
    spread = spreads(several_phrasings(pd.concat([one, two], ignore_index=True), grid))
    assert spread["range"].tolist() == [40] and spread["mean"].tolist() == [60]


@pytest.fixture
def suite(build, tmp_path):
    return build.suite(tmp_path, size=48, patients=4, seeds=(0, 1))


def reword(suite, method, worse):
    """Leaves what `bench phrasings` leaves: each mask of the method's runs asked for twice more, once with Dice 0."""
    for folder in suite.glob(f"{method}-*"):
        records = pd.read_parquet(folder / "records.parquet")
        same = records.assign(prompt="the " + records["object"])
        lost = records[records["object"].isin(worse)]
        lost = lost.assign(prompt=lost["object"] + " somewhere", fn=lost["tp"] + lost["fn"], tp=0)
        write_table(pd.concat([same, lost]), folder / PHRASINGS_FILE, RECORD_COLUMNS)


def test_the_report_has_both_tables(suite):
    before = build_report(suite).tables["main_table.csv"].read_bytes()
    reword(suite, "boltzformer", ["left kidney"])
    reword(suite, "sam", [])
    report = build_report(suite)
    assert report.tables["main_table.csv"].read_bytes() == before  # a mask has one weight, however often it was asked
    frame = pd.read_csv(report.tables["prompts.csv"]).set_index("method")
    assert list(frame.index) == ["BoltzFormer+Hiera-XT", "SAM+Hiera-XT"]  # nnU-Net was not asked
    assert frame.loc["SAM+Hiera-XT", ["sd", "range", "moved"]].tolist() == [0, 0, 0]
    line = frame.loc["BoltzFormer+Hiera-XT"]
    assert line["worst"] == "left kidney somewhere (AMOS22-CT)" and line["worst_dice"] == 0
    records = load_suite(suite).records
    mine = records[records["method"] == "boltzformer"]
    dice = 200 * mine["tp"] / (2 * mine["tp"] + mine["fp"] + mine["fn"])
    left = dice[mine["object"] == "left kidney"]
    assert line["worst_first"] == pytest.approx(left.mean())
    # one of three data sets has it, on one of its two objects
    by_mask = left.where(left > robustness.MOVED, np.nan).notna()
    assert line["range"] == pytest.approx(left.mean() / 2 / 3) and line["moved"] == pytest.approx(
        by_mask.mean() * 100 / 6
    )
    assert line["first"] == pytest.approx(dice.groupby(mine["dataset"].astype(str)).mean().mean())
    assert line["range SE"] > 0
    phrases = pd.read_csv(report.tables["phrasings.csv"]).set_index(["object", "prompt"])
    assert phrases.loc[("left kidney", "left kidney somewhere"), "BoltzFormer+Hiera-XT"] == 0
    assert phrases.loc[("left kidney", "left kidney in AMOS22-CT"), "first"] == "yes"
    assert phrases.loc[("left kidney", "left kidney somewhere"), "support"] == 8
    assert "&lt;b&gt;stripe" in report.html.read_text() and "the <b>stripe" not in report.html.read_text()


def test_no_table_where_nothing_was_asked(suite):
    report = build_report(suite)
    assert report.prompts is None and not {"prompts.csv", "phrasings.csv"} & set(report.tables)
    results = load_suite(suite)
    assert load_phrasings(results).empty and prompt_tables(results, check_grid(results)) == []


def test_a_phrasing_of_few_masks_is_not_the_worst(build):
    masks = {("p", str(place)): {"nodule": 80, "lesion": 75} for place in range(robustness.LEAST)}
    masks["p", "0"]["blob"] = 10
    everything, first = asked(build, masks)
    line = robustness._worst(several_phrasings(everything, check_grid(build.results(first))))
    assert line == {"worst": "lesion (d)", "worst_dice": 75, "worst_first": 80}
