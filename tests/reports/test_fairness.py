"""The fairness line and table, on suites where it is known who differs in what."""

import json
import shutil

import pandas as pd
import pytest

from reports.build import COMPARING, build_report
from reports.fairness import fairness_line, fairness_table
from reports.grid import check_grid
from reports.load import load_suite


def line_of(suite):
    results = load_suite(suite)
    return fairness_line(results, check_grid(results))


def change_given(suite, method, **given):
    for file in suite.glob(f"{method}-*/status.json"):
        status = json.loads(file.read_text())
        status["fit"]["given"] |= given
        file.write_text(json.dumps(status))


@pytest.fixture
def suite(build, tmp_path):
    return build.suite(tmp_path, size=32, patients=2, slices=1, seeds=(0, 1))


def test_seeds_are_compared_with_their_like(suite):
    """Weights differ from seed to seed, and that is no difference between methods; nnU-Net has none."""
    line = line_of(suite)
    assert line.startswith("Alike for all methods: split, image size, images seen, loss. Unlike")
    assert "Unlike the others: nnU-Net (no backbone weights, text encoder)." in line
    assert "SAM" not in line and "BoltzFormer" not in line


def test_what_nobody_has_is_not_alike(suite):
    for folder in suite.glob("*seed*"):
        if not folder.name.startswith("nnunet"):
            shutil.rmtree(folder)
    line = line_of(suite)
    assert "Alike for all methods: split, image size, images seen, loss." in line and "backbone" not in line


def test_who_differs_is_named_with_what(suite):
    change_given(suite, "sam", images_seen="3200", backbone_weights="other")
    line = line_of(suite)
    assert "images seen" not in line.partition("Unlike")[0]
    assert "SAM+Hiera-XT (backbone weights: other; images seen: 3200)" in line
    results = load_suite(suite)
    table = fairness_table(results, check_grid(results))
    marked = {(table.frame["method"][row], key) for row, key in table.underline}
    assert ("SAM+Hiera-XT", "images_seen") in marked and ("BoltzFormer+Hiera-XT", "images_seen") not in marked


def test_the_line_stands_under_every_table_that_compares_methods(suite):
    line, report = line_of(suite), build_report(suite)
    compared = [name for name in COMPARING if f"{name}.md" in report.tables]
    assert set(COMPARING) - set(compared) <= {"by_modality"}  # there with several modalities
    for name in compared:
        assert line in report.tables[f"{name}.md"].read_text()
    assert line in report.main.notes
    assert line not in report.tables["object_sizes.md"].read_text()


def test_runs_of_before_these_facts_were_kept(suite):
    for file in suite.glob("*/status.json"):
        status = json.loads(file.read_text())
        del status["fit"]["given"], status["fit"]["cost"]
        file.write_text(json.dumps(status))
    report = build_report(suite)
    assert "What the methods were given is not recorded." in report.main.notes
    assert set(pd.read_csv(report.tables["fairness.csv"])["split"]) == {"not recorded"}
    assert set(pd.read_csv(report.tables["cost.csv"])["ms_1_prompt"]) == {"-"}
