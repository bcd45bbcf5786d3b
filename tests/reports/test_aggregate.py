"""Scores against numbers worked out by hand, a library, slow loops, and the published results."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import dice as scipy_dice

from experiments.paper import DATASETS, TABLE_9
from reports.aggregate import (
    cluster_sums,
    dataset_average,
    dataset_means,
    dice_percent,
    group_scores,
    object_sizes,
    per_object,
)
from reports.strata import GROUPS, area_percent, members


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_dice_is_that_of_scipy(pixels):
    mask, truth = np.array(pixels).T
    counts = [np.array([n]) for n in ((mask & truth).sum(), (mask & ~truth).sum(), (~mask & truth).sum())]
    found = dice_percent(*counts)[0]
    if not mask.any() and not truth.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(100 * (1 - scipy_dice(mask, truth)))


def rows_of(method="a", seed=0):
    """Two data sets: Dice 100, 50 and 0 on d (small, small, large), 80 on e (small)."""
    run = {"method": method, "seed": seed}
    return [
        {**run, "dataset": "d", "image_id": "1", "patient": "p", "tp": 10},
        {**run, "dataset": "d", "image_id": "2", "patient": "p", "tp": 1, "fp": 1, "fn": 1},
        {**run, "dataset": "d", "image_id": "3", "patient": "q", "fn": 100},
        {**run, "dataset": "e", "object": "x", "image_id": "1", "patient": "r", "tp": 2, "fp": 1},
    ]


def test_means_by_hand(build):
    grid, scores = build.scores(build.frame(rows_of()))
    means = dataset_means(scores, grid.datasets)
    assert means[0] == pytest.approx([50, 80])
    assert dataset_average(means)[0] == pytest.approx(65)
    assert scores.complete.all() and scores.seconds[0] == pytest.approx(0.1)


def test_size_groups_by_hand(build):
    _, scores = build.scores(build.frame(rows_of()))
    sums = cluster_sums(scores, members(scores.cases["area_pct"]))
    found = group_scores(sums, [np.ones((1, len(part.size))) for part in sums])[0, :, 0]
    # small: 2 of 3 masks of d with mean 75, 1 of 1 of e with 80; large: only d has any
    expected = {"Small (<1%)": (2 / 3 * 75 + 80) / (2 / 3 + 1), "Large (>=1%)": 0.0, "All": 65.0}
    expected |= {"0.1-0.25%": 100.0, "<0.05%": (1 / 3 * 50 + 80) / (1 / 3 + 1), "1-5%": 0.0}
    for group, value in zip(GROUPS, found, strict=True):
        assert value == pytest.approx(expected.get(group.label, np.nan), nan_ok=True), group


def test_size_groups_against_a_loop(build):
    random = np.random.default_rng(0)
    rows = [
        {"dataset": f"d{i % 3}", "image_id": str(i), "patient": str(i % 17), "method": method}
        | dict(zip(("tp", "fp", "fn"), random.integers(0, 400, 3).tolist(), strict=True))
        for i in range(120)
        for method in ("a",)
    ]
    _, scores = build.scores(build.frame(rows))
    sums = cluster_sums(scores, members(scores.cases["area_pct"]))
    found = group_scores(sums, [np.ones((1, len(part.size))) for part in sums])[0, :, 0]
    for place, group in enumerate(GROUPS):
        total = weights = 0.0
        for name in ("d0", "d1", "d2"):
            mine = [row for row in rows if row["dataset"] == name]
            chosen = [row for row in mine if group.lower <= (row["tp"] + row["fn"]) / 100 < group.upper]
            if chosen:
                dice = [200 * r["tp"] / (2 * r["tp"] + r["fp"] + r["fn"]) for r in chosen]
                total += len(chosen) / len(mine) * sum(dice) / len(dice)
                weights += len(chosen) / len(mine)
        assert found[place] == pytest.approx(total / weights if weights else np.nan, nan_ok=True)


def test_a_gap_is_never_averaged(build):
    grid, scores = build.scores(build.frame(rows_of("a") + rows_of("b")[1:]))
    means = dataset_means(scores, grid.datasets)
    assert means[0] == pytest.approx([50, 80])
    assert np.isnan(means[1, 0]) and means[1, 1] == pytest.approx(80)
    assert np.isnan(dataset_average(means)[1])
    assert scores.complete.tolist() == [True, False]


def test_one_of_two_seeds_missing_is_a_gap(build):
    _, scores = build.scores(build.frame(rows_of(seed=0) + rows_of(seed=1)[:3]))
    assert not scores.complete[0] and np.isnan(scores.dice[3, 0])


def test_seeds_are_averaged_case_by_case(build):
    second = [{**row, "fp": row.get("fp", 0) + 10} for row in rows_of(seed=1)]
    _, scores = build.scores(build.frame(rows_of(seed=0) + second))
    assert scores.dice[0, 0] == pytest.approx((100 + 200 * 10 / 30) / 2)


def test_both_empty_is_counted_and_left_out(build):
    rows = [*rows_of(), {"dataset": "d", "image_id": "4"}]
    grid, scores = build.scores(build.frame(rows))
    assert scores.both_empty[0] == 1 and scores.complete[0]
    assert dataset_means(scores, grid.datasets)[0] == pytest.approx([50, 80])


def test_a_data_set_of_empty_masks_only_has_no_mean(build):
    rows = [*rows_of(), {"dataset": "f", "image_id": "4"}]
    _, scores = build.scores(build.frame(rows))
    sums = cluster_sums(scores, members(scores.cases["area_pct"]))
    found = group_scores(sums, [np.ones((1, len(part.size))) for part in sums])
    assert np.isnan(found[0, 2, 0])  # "All" would otherwise be silently over two of three data sets


def test_per_object_mean_and_median(build):
    frame, means, medians = per_object(build.scores(build.frame(rows_of()))[1])
    assert frame.to_dict("list") == {"dataset": ["d", "e"], "object": ["o", "x"], "support": [3, 1]}
    assert means[:, 0] == pytest.approx([50, 80]) and medians[:, 0] == pytest.approx([50, 80])
    _, means, medians = per_object(build.scores(build.frame(rows_of("a") + rows_of("b")[1:]))[1])
    assert np.isnan([means[0, 1], medians[0, 1]]).all() and medians[1, 1] == pytest.approx(80)


def test_object_sizes_count_a_mask_once_and_keep_the_papers_order():
    ids = {"image_id": ["1", "1", "2", "1"], "prompt": ["x", "y", "x", "x"]}
    places = {"dataset": ["a", "a", "a", "LIDC-IDRI"], "object": ["o", "o", "o", "nodule"]}
    found = object_sizes(pd.DataFrame({**places, **ids, "area_pct": [1.0, 1.0, 3.0, 0.5]}))
    assert found["dataset"].tolist() == ["LIDC-IDRI", "a"]
    assert found.loc[1].tolist() == ["a", "o", 2.0, 2.0, 1.0, 3.0, 2]


@pytest.fixture
def biomedparse(published):
    """The published test masks as records whose counts give the published Dice to 1e-6."""
    frames = []
    for dataset, folder in published.items():
        for path in sorted(folder.glob("*_metrics.csv")):
            table = pd.read_csv(path, usecols=["file", "dice", "area"])
            name = path.name.removesuffix("_metrics.csv").replace("+", " ")
            frames.append(table.assign(dataset=dataset, object=name))
    table = pd.concat(frames, ignore_index=True)
    return table.assign(height=1024, width=1024, area_px=table["area"].astype("int64"))


def test_table_9_of_the_paper(biomedparse):
    shape = (biomedparse[name] for name in ("area_px", "height", "width"))
    found = object_sizes(biomedparse.assign(image_id=biomedparse["file"], area_pct=area_percent(*shape)))
    assert len(found) == 38 and found["support"].sum() == 40339
    for dataset, name, *sizes, support in found.itertuples(index=False):
        *expected, count = TABLE_9[dataset, name]
        assert support == count
        assert np.abs(np.array(sizes) - expected).max() <= 0.0005 + 1e-9, (dataset, name)


def test_table_1_row_of_biomedparse(build, biomedparse):
    # tp of 10^9 pixels: the ratio of whole numbers then holds the published Dice to nine digits
    scale = 10**9
    tp = (biomedparse["dice"] * scale).round().astype("int64")
    rows = pd.DataFrame({"dataset": biomedparse["dataset"], "object": biomedparse["object"], "tp": tp})
    rows = rows.assign(fn=scale - tp, fp=scale - tp, image_id=biomedparse["file"], patient=biomedparse["file"])
    grid, scores = build.scores(build.frame(rows.to_dict("records")))
    means = dataset_means(scores, grid.datasets)
    found = dict(zip(grid.datasets, means[0].round(1), strict=True))
    assert tuple(found) == DATASETS
    expected = {"LIDC-IDRI": 73.8, "AMOS22-CT": 91.9, "AMOS22-MRI": 87.6, "MSD-Lung": 66.1, "MSD-Colon": 66.5}
    expected |= {"MSD-Pancreas": 61.6, "MSD-HepaticVessel": 62.8}
    assert {name: found[name] for name in expected} == expected
    assert dataset_average(means)[0] == pytest.approx(72.9, abs=0.05)
