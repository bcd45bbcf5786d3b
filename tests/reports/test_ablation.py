"""Ablation tables and figures from a suite of variants, against the tables they must agree with."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments.ablations import ABLATIONS
from experiments.paper import TABLES_3_TO_8
from reports.ablation import ablation_figure, ablation_table
from reports.aggregate import score, seed_scores
from reports.build import build_report
from reports.grid import check_grid
from reports.load import load_suite
from reports.significance_tables import suite_spread
from reports.statistics import pooled_spread, rows_by_seeds
from reports.tables import to_markdown

ROWS = {
    "boltzformer": "BoltzFormer",
    "boltzformer temperature=0.25": "temperature 0.25",
    "boltzformer temperature=2": "temperature 2",
    "boltzformer attention=full attention": "full attention",
}
VALUES = {
    "temperature": {"0.25": "boltzformer temperature=0.25", "1": "boltzformer", "2": "boltzformer temperature=2"},
    "attention": {"full attention": "boltzformer attention=full attention", "boltzmann sampling": "boltzformer"},
}


@pytest.fixture
def suite(build, tmp_path):
    folder = build.suite(tmp_path, size=48, patients=6, methods=ROWS, seeds=(0, 1))
    content = json.loads((folder / "suite.json").read_text())
    (folder / "suite.json").write_text(json.dumps(content | {"ablations": VALUES, "reference": "boltzformer"}))
    return folder


def table_of(suite, name="temperature"):
    results = load_suite(suite)
    return ablation_table(ABLATIONS[name], results.ablations[name], results, "boltzformer")


def test_values_stand_in_their_order_beside_the_papers(suite):
    frame = table_of(suite).frame
    assert frame["value"].tolist() == ["0.25", "1", "2"] and frame["own"].tolist() == ["", "yes", ""]
    paper = [TABLES_3_TO_8["temperature", value] for value in ("0.25", "1", "2")]
    assert list(zip(frame["paper"], frame["paper SE"], strict=True)) == paper
    assert frame["paper_difference"].tolist() == pytest.approx([dice - 73.7 for dice, _ in paper])


def test_the_papers_numbers_can_be_left_out(suite):
    report = build_report(suite, paper=False)
    table = report.ablations["temperature"]
    assert "Paper" not in to_markdown(table) and not [key for key in table.frame if "paper" in key]
    assert "Diamonds" not in report.html.read_text()
    assert "Diamonds" in build_report(suite).html.read_text()


def test_scores_are_those_of_the_whole_suites_tables(suite):
    """The same numbers as the main table; the difference is to the profile's own value."""
    frame, main = table_of(suite).frame, build_report(suite).frame.set_index("method")
    names = ["temperature 0.25+Hiera-XT", "BoltzFormer+Hiera-XT", "temperature 2+Hiera-XT"]
    assert frame["all"].tolist() == pytest.approx(main.loc[names, "average"].tolist())
    assert frame["difference"].isna().tolist() == [False, True, False]
    assert frame.loc[0, "difference"] == pytest.approx(frame.loc[0, "all"] - frame.loc[1, "all"])
    assert (frame.loc[[0, 2], "low"] < frame.loc[[0, 2], "difference"]).all()


def test_a_test_over_patients_stands_where_there_is_one_seed(suite):
    """From two on the interval holds the seeds, and the p beside it would not."""
    assert "p" not in table_of(suite).frame and "Wilcoxon" not in table_of(suite).caption
    content = json.loads((suite / "suite.json").read_text())
    content["runs"] = [run for run in content["runs"] if "-seed0-" in run]
    (suite / "suite.json").write_text(json.dumps(content))
    assert table_of(suite).frame.loc[[0, 2], "p"].between(0, 1).all() and "Wilcoxon" in table_of(suite).caption


def test_what_has_not_run_is_a_gap(suite, build):
    for folder in suite.glob("boltzformer-temperature=2-*"):
        build.change(folder / "status.json", state="failed", error="out of memory", fit=None)
    table = table_of(suite)
    assert table.frame.loc[2, "all"] == "failed" and np.isnan(table.frame.loc[2, "difference"])
    assert "failed" in to_markdown(table)
    assert ablation_figure(ABLATIONS["temperature"], table) is not None


def test_a_value_of_ones_own_has_no_paper(suite):
    content = json.loads((suite / "suite.json").read_text())
    content["ablations"]["temperature"] = {"4": "boltzformer temperature=2", "1": "boltzformer"}
    (suite / "suite.json").write_text(json.dumps(content))
    frame = table_of(suite).frame
    assert np.isnan(frame.loc[0, "paper"]) and frame.loc[1, "paper"] == 73.7


def test_the_report_has_a_table_and_a_figure_of_each(suite):
    report = build_report(suite)
    for name in VALUES:
        assert {f"ablation_{name}.{form}" for form in ("md", "csv", "tex")} <= set(report.tables)
        picture = Image.open(io.BytesIO(report.figures[f"ablation_{name}.png"].read_bytes()))
        assert min(picture.size) > 300
        assert f'id="ablation_{name}"' in report.html.read_text()
    frame = pd.read_csv(report.tables["ablation_attention.csv"])
    assert frame["value"].tolist() == ["full attention", "boltzmann sampling"]


def test_layers_are_left_out_of_the_pooled_spread_and_have_their_own(suite):
    content = json.loads((suite / "suite.json").read_text())
    del content["ablations"]["attention"]
    content["ablations"]["layers"] = {"3": "boltzformer attention=full attention", "9": "boltzformer"}
    (suite / "suite.json").write_text(json.dumps(content))
    results = load_suite(suite)
    grid = check_grid(results)
    by_seed = np.array([[60.0, 50, 55, 40], [62, 51, 59, 90]])
    assert suite_spread(results, grid, by_seed) == pooled_spread(by_seed[:, :3])
    tables = build_report(suite).ablations
    assert "pooled over all rows but those of layers and size" in tables["temperature"].caption
    assert "pooled" not in tables["layers"].caption
    of_pair = table_of(suite, "layers").frame  # no spread is given
    pd.testing.assert_frame_equal(tables["layers"].frame, of_pair)
    differences = pd.read_csv(build_report(suite).tables["differences.csv"]).set_index("label")
    for name, label in (("layers", "full attention"), ("temperature", "temperature 2")):
        line = tables[name].frame.set_index("value").loc["3" if name == "layers" else "2", ["low", "high"]]
        assert differences.loc[f"{label}+Hiera-XT", ["all_low", "all_high"]].tolist() == pytest.approx(line.tolist())


def test_the_table_of_seeds_says_whether_any_value_matters(suite):
    """It has the rows' scores by seed as the tables do, and its words are the test's."""
    results = load_suite(suite)
    grid = check_grid(results)
    table = build_report(suite).tables["seeds.md"].read_text()
    said = re.search(r"On these patients the 4 rows (differ|are not) .* F\(3, 3\) = (\S+) .*, p = (\S+);", table)
    scores = score(results.records, grid)
    found = rows_by_seeds(seed_scores(scores, np.ones((len(scores.cases), 1), bool))[:, 0])
    words = "differ" if found.p < 0.05 else "are not"
    assert said.groups() == (words, f"{found.f:.2f}", f"{found.p:.2g}")
    content = json.loads((suite / "suite.json").read_text())
    content["ablations"]["layers"] = {"3": "boltzformer attention=full attention", "6": "boltzformer"}
    (suite / "suite.json").write_text(json.dumps(content))
    assert "the 3 rows but those of layers and size " in build_report(suite).tables["seeds.md"].read_text()
    (suite / "suite.json").write_text(json.dumps(content | {"ablations": {}}))  # rows of no one kind
    assert "On these patients" not in build_report(suite).tables["seeds.md"].read_text()
    one_seed = content | {"runs": [run for run in content["runs"] if "-seed0-" in run]}
    (suite / "suite.json").write_text(json.dumps(one_seed))
    assert "On these patients" not in build_report(suite).tables["seeds.md"].read_text()


def test_layers_alone_pool_nothing(suite):
    content = json.loads((suite / "suite.json").read_text())
    content["ablations"] = {"layers": {"3": "boltzformer attention=full attention", "9": "boltzformer"}}
    rows = {"boltzformer": "BoltzFormer", "boltzformer attention=full attention": "full attention"}
    content |= {"methods": rows, "runs": [run for run in content["runs"] if "temperature" not in run]}
    (suite / "suite.json").write_text(json.dumps(content))
    assert "pooled" not in build_report(suite).tables["differences.md"].read_text()


def test_no_figure_without_a_difference(suite, build):
    for folder in suite.glob("boltzformer-temperature=*"):
        build.change(folder / "status.json", state="interrupted", fit=None)
    assert ablation_figure(ABLATIONS["temperature"], table_of(suite)) is None
