"""The paper's columns: the right row, its published values, and ours untouched."""

import csv

import pandas as pd
import pytest
from typer.testing import CliRunner

from bench import cli
from experiments.paper import DATASETS, TABLE_9
from reports.build import build_report
from reports.paper_columns import paper_row

OBJECTS = {name: [next(label for dataset, label in TABLE_9 if dataset == name)] for name in DATASETS}


@pytest.fixture
def suite(build, tmp_path):
    return build.suite(tmp_path, size=48, objects=OBJECTS | {"zebra": ["stripe"]}, patients=2, slices=1)


@pytest.mark.parametrize(
    ("method", "backbone", "row"),
    [
        ("sam2", "Hiera-BP", "SAM2+Hiera-BP (text)"),
        ("boltzformer", "Focal-L", "BoltzFormer+FocalL"),
        ("seem", "Focal-L", "SEEM+Hiera-S (text)"),  # the paper has no SEEM on it
        ("sam", "Hiera-XT", "SAM+Hiera-S (text)"),
        ("nnunet", "-", "nnU-Net"),
        ("sam_multimask", "Hiera-S", None),
        ("location_prior", "-", None),
    ],
)
def test_paper_row(method, backbone, row):
    assert paper_row(method, backbone) == row


def test_numbers_are_the_published_ones(suite, shared):
    tables = build_report(suite).tables
    with (shared / "paper" / "table1_dice.csv").open() as handle:
        published = {line["method"]: line for line in csv.DictReader(handle)}
    frame = pd.read_csv(tables["main_table.csv"])
    assert frame["paper_row"].tolist() == ["BoltzFormer+Hiera-S", "SAM+Hiera-S (text)", "nnU-Net"]
    for row in frame.to_dict("records"):
        for ours, theirs in {"average": "avg", "LIDC-IDRI": "lidc", "AMOS22-CT": "amos_ct"}.items():
            assert row[f"paper {ours}"] == float(published[row["paper_row"]][theirs])
    assert "paper zebra" not in frame  # no data set of the paper
    sizes = pd.read_csv(tables["by_size.csv"], na_values="-").set_index("area")
    with (shared / "paper" / "table2_by_size.csv").open() as handle:
        groups = {(line["group"], line["method"]): line for line in csv.DictReader(handle)}
    for area, group in {"Small (<1%)": "small", "Large (>=1%)": "large", "All": "all"}.items():
        assert sizes.loc[area, "paper SAM+Hiera-XT"] == float(groups[group, "SAM"]["dice"])
        assert sizes.loc[area, "paper BoltzFormer+Hiera-XT SE"] == float(groups[group, "BoltzFormer"]["se"])
    assert sizes["paper SAM+Hiera-XT"].notna().sum() == 3 and not any("paper nnU-Net" in name for name in sizes)
    objects = pd.read_csv(tables["object_sizes.csv"], na_values="-").set_index(["dataset", "object"])
    with (shared / "paper" / "table9_object_sizes.csv").open() as handle:
        areas = {(line["dataset"], line["object"]): line for line in csv.DictReader(handle)}
    for key, row in objects.iterrows():
        for name in ("area_mean_pct", "area_median_pct", "area_min_pct", "area_max_pct", "support"):
            if key in areas:
                assert row[f"paper {name}"] == float(areas[key][name])
            else:
                assert pd.isna(row[f"paper {name}"])


def test_our_numbers_and_what_is_bold_do_not_depend_on_it(suite):
    beside = build_report(suite)
    ours = pd.read_csv(beside.tables["main_table.csv"])
    assert not any("paper" in key for _, key in beside.main.bold | beside.main.underline)
    assert "on its data and at its scale" in beside.tables["main_table.md"].read_text()
    alone = build_report(suite, paper=False)
    pd.testing.assert_frame_equal(
        ours.drop(columns=[name for name in ours if name.startswith("paper")]),
        pd.read_csv(alone.tables["main_table.csv"]),
    )
    assert alone.main.bold == beside.main.bold and alone.main.underline == beside.main.underline


def test_own_data_have_no_column_of_the_paper(build, tmp_path):
    methods = {"boltzformer": "BoltzFormer", "location_prior": "Location prior"}
    suite = build.suite(tmp_path, size=48, objects={"zebra": ["stripe"]}, methods=methods)
    for name in ("main_table.csv", "by_size.csv", "object_sizes.csv"):
        assert "paper" not in build_report(suite).tables[name].read_text()


def test_averages_over_all_its_data_sets_stand_beside_such_alone(build, tmp_path):
    """Of some of its data sets the paper has a number each, and no average."""
    tables = build_report(build.suite(tmp_path, size=48)).tables  # two of them
    frame = pd.read_csv(tables["main_table.csv"])
    assert {"paper LIDC-IDRI", "paper AMOS22-CT"} <= set(frame) and "paper average" not in frame
    assert "paper" not in tables["by_size.csv"].read_text()
    assert "paper" in tables["object_sizes.csv"].read_text()


def test_command_line(suite):
    for option, there in (("--paper", True), ("--no-paper", False)):
        result = CliRunner().invoke(cli.app, ["report", str(suite), option])
        assert result.exit_code == 0
        assert ("Row of the paper" in (suite / "report" / "main_table.md").read_text()) is there
