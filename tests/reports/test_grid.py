"""The grid check against an obvious loop over every method, case and seed."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import UserError
from reports.grid import check_grid, dataset_order

CASES = [("d", "o", "1"), ("d", "o", "2"), ("e", "o", "1"), ("e", "q", "1")]
RUNS = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def record(method, seed, case, **counts):
    dataset, name, image = case
    ids = {"dataset": dataset, "object": name, "image_id": image}
    return {"method": method, "seed": seed, **ids, "tp": 4, "fn": 2, **counts}


def test_a_full_grid_has_no_gap(build):
    rows = [record(*run, case) for run, case in itertools.product(RUNS, CASES)]
    grid = check_grid(build.results(build.frame(rows[::-1])))
    assert grid.present.all() and grid.present.shape == (4, 2) and grid.gaps.empty
    assert [row.seeds for row in grid.rows] == [(1, 0), (1, 0)]


@settings(deadline=None, max_examples=40)
@given(st.sets(st.sampled_from(list(itertools.product(RUNS, CASES)))))
def test_gaps_are_those_a_loop_finds(build, dropped):
    kept = [pair for pair in itertools.product(RUNS, CASES) if pair not in dropped]
    if {run for run, _ in kept} != set(RUNS):
        return  # a run without any record is not known from records alone
    grid = check_grid(build.results(build.frame([record(*run, case) for run, case in kept])))
    known = sorted({case for _, case in kept})
    for place, row in enumerate(grid.rows):
        wanted = [all(((row.method, seed), case) in kept for seed in row.seeds) for case in known]
        assert grid.present[:, place].tolist() == wanted
    missing = sum((run, case) not in kept for run, case in itertools.product(RUNS, known))
    assert grid.gaps["missing"].sum() == missing


def test_codes_lead_back_to_the_record(build):
    rows = [record(*run, case) for run, case in itertools.product(RUNS, CASES)]
    frame = build.frame(rows).sample(frac=1, random_state=3).reset_index(drop=True)
    grid = check_grid(build.results(frame))
    for name in ("dataset", "object", "image_id"):
        assert (grid.cases[name].to_numpy()[grid.case_code] == frame[name].to_numpy()).all()
    labels = np.array([row.method for row in grid.rows])
    assert (labels[grid.row_code] == frame["method"].to_numpy()).all()


def test_a_record_that_is_there_twice(build):
    frame = build.frame([record("a", 0, CASES[0]), record("a", 0, CASES[0])])
    with pytest.raises(UserError, match="1 records are there twice, first a seed 0 on d/1 'o'"):
        check_grid(build.results(frame))


@pytest.mark.parametrize("change", [{"patient": "other"}, {"fn": 3}, {"height": 50}])
def test_runs_scored_against_different_truths(build, change):
    frame = build.frame([record("a", 0, CASES[0]), record("b", 0, CASES[0], **change)])
    with pytest.raises(UserError, match=r"a and b disagree on (patient|area_px|height) of d/1 'o'"):
        check_grid(build.results(frame))


def test_another_prompt_is_another_case(build):
    frame = build.frame([record("a", 0, CASES[0]), record("b", 0, CASES[0], prompt="the o")])
    grid = check_grid(build.results(frame))
    assert not grid.present.all() and grid.gaps["missing"].tolist() == [1, 1]


def test_a_data_set_without_records_is_a_gap(build):
    grid = check_grid(build.results(build.frame([record("a", 0, CASES[0])]), datasets=("empty",)))
    assert grid.datasets == ("d", "empty") and grid.gaps["dataset"].tolist() == ["empty"]


def test_order_of_data_sets():
    assert dataset_order({"zebra", "MSD-Colon", "apple", "LIDC-IDRI"}) == (
        "LIDC-IDRI",
        "MSD-Colon",
        "apple",
        "zebra",
    )
