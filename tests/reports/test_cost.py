"""The cost table, and who is on the Pareto front."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.build import build_report
from reports.cost import pareto_front


@pytest.fixture
def suite(build, tmp_path):
    return build.suite(tmp_path, size=32, patients=2, slices=1, seeds=(0, 1))


def test_costs_are_means_over_seeds(suite):
    file = next(suite.glob("sam-*seed1*/status.json"))
    status = json.loads(file.read_text())
    status["fit"]["cost"] |= {"ms_1_prompt": 40.0}
    del status["fit"]["cost"]["peak_memory_mib"]
    file.write_text(json.dumps(status))
    frame = pd.read_csv(build_report(suite).tables["cost.csv"]).set_index("method")
    assert frame.loc["SAM+Hiera-XT", "ms_1_prompt"] == 30
    assert frame.loc["BoltzFormer+Hiera-XT", "ms_1_prompt"] == 20
    assert frame.loc["SAM+Hiera-XT", "peak_memory_mib"] == 900


def test_the_figure_needs_a_time(suite):
    assert "dice_vs_cost.png" in build_report(suite).figures
    for file in suite.glob("*/status.json"):
        status = json.loads(file.read_text())
        status["fit"]["cost"] = {}
        file.write_text(json.dumps(status))
    assert "dice_vs_cost.png" not in build_report(suite).figures


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=8))
def test_nobody_beats_the_front(points):
    cost, score = np.array(points, dtype=float).T
    front = pareto_front(cost, score)
    for place, (c, s) in enumerate(points):
        beaten = any(other <= c and good >= s and (other, good) != (c, s) for other, good in points)
        assert front[place] == (not beaten)
