"""The areas: fitted distributions against Table 9 and the published areas of the paper's test masks."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.data.phantom import render_slice
from bench.data.phantom.plan import BOTH_SIDES, plan_split, target_pixels
from bench.data.phantom.shapes import Blob, blob_field, grow, grow_connected, waves
from bench.data.phantom.sizes import areas_of, fit_areas, to_pixels
from experiments.paper import DATASETS, TABLE_9

FOLDERS = {
    "LIDC-IDRI": "LIDC-IDRI",
    "MSD-Lung": "MSD/Task06_Lung",
    "MSD-Pancreas": "MSD/Task07_Pancreas",
    "MSD-HepaticVessel": "MSD/Task08_HepaticVessel",
    "MSD-Colon": "MSD/Task10_Colon",
    "AMOS22-CT": "amos22/CT",
    "AMOS22-MRI": "amos22/MRI",
}


@pytest.mark.parametrize(("dataset", "name"), list(TABLE_9))
def test_random_draws_have_the_statistics_of_table_9(dataset, name):
    mean, median, low, high, _ = TABLE_9[dataset, name]
    draws = areas_of(dataset, name).quantile(np.random.default_rng(0).random(40_000))
    assert draws.mean() == pytest.approx(mean, rel=0.03)
    assert np.median(draws) == pytest.approx(median, rel=0.03)
    assert draws.min() >= low and draws.max() <= high


def hold_to_table_9(dataset, areas, support):
    """Mean and median within 10%, minimum and maximum not exceeded; `areas`: object -> percents of the image."""
    for name, values in areas.items():
        mean, median, low, high, _ = TABLE_9[dataset, name]
        assert len(values) >= support, name
        assert np.mean(values) == pytest.approx(mean, rel=0.10), name
        assert np.median(values) == pytest.approx(median, rel=0.10), name
        assert min(values) >= low * (1 - 1e-9) and max(values) <= high * (1 + 1e-9), name


def mask_pixels(plan, size):
    """The planned px of each target, of both sides together too where both are shown."""
    counts = target_pixels(plan, size)
    for both, (left, right) in BOTH_SIDES.items():
        if left in counts and right in counts:
            counts[both] = counts[left] + counts[right]
    return counts


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dataset", DATASETS)
def test_masks_have_the_statistics_of_table_9(dataset, seed):
    """The pixels of every mask, which test_phantom.py finds in the rendered ones, at the size of the laptop profile."""
    names = [name for row, name in TABLE_9 if row == dataset]
    areas: dict[str, list[float]] = {name: [] for name in names}
    for plan in plan_split(dataset, names, 1, 300, 8, seed):
        assert set(plan.areas) & set(names), "a slice without a target"
        for name, count in mask_pixels(plan, 256).items():
            areas[name].append(100 * count / 256**2)
    hold_to_table_9(dataset, areas, 500)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", DATASETS)
def test_rendered_masks_have_the_pixels_that_are_counted_above(dataset):
    """Of each patient two of its slices: one mask a pixel off is found, which the statistics would not show."""
    names = [name for row, name in TABLE_9 if row == dataset]
    seen = set()
    for plan in plan_split(dataset, names, 1, 300, 8, seed=0)[::4]:
        rendered = {name: int(mask.sum()) for name, mask in render_slice(plan, 128)[1].items()}
        assert rendered == mask_pixels(plan, 128)
        seen |= rendered.keys()
    assert seen == set(names)


@given(
    row=st.sampled_from(list(TABLE_9)),
    patients=st.integers(1, 12),
    slices=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=150, deadline=None)
def test_whatever_is_asked_for_is_in_every_slice_and_fits_the_body(row, patients, slices, seed):
    dataset, name = row
    plans = plan_split(dataset, [name], 1, patients, slices, seed)
    assert len(plans) == patients * slices
    for plan in plans:
        assert set(BOTH_SIDES.get(name, (name,))) <= set(plan.areas)
        assert sum(plan.areas.values()) + sum(plan.context.values()) <= plan.total * (1 + 1e-9) <= 45
        if dataset == "MSD-HepaticVessel":
            assert "liver" in plan.context


@pytest.mark.parametrize(("dataset", "name"), list(TABLE_9))
def test_published_areas_look_drawn_from_the_fit(shared, dataset, name):
    folder = shared / "data" / "biomedparse_results"
    file = folder / FOLDERS[dataset] / f"{name.replace(' ', '+')}_metrics.csv"
    with file.open() as handle:
        rows = list(csv.DictReader(handle))
    column = next(key for key in rows[0] if "area" in key.lower())
    published = np.array([float(row[column]) for row in rows]) / 1024**2 * 100
    drawn = areas_of(dataset, name).quantile((np.arange(5000) + 0.5) / 5000)
    # four numbers cannot give a whole distribution (0.17 at worst); a row of another object is far off
    assert stats.ks_2samp(published, drawn).statistic < 0.2


@given(
    median=st.floats(0.01, 5),
    skew=st.floats(1.0, 1.8),
    below=st.floats(3, 30),
    above=st.floats(5, 30),
    support=st.integers(50, 5000),
)
@settings(max_examples=60, deadline=None)
def test_any_row_is_fitted(median, skew, below, above, support):
    fitted = fit_areas(median * skew, median, median / below, median * above, support)
    draws = fitted.quantile((np.arange(20_000) + 0.5) / 20_000)
    assert np.all(np.diff(draws) >= 0)
    assert draws[0] >= median / below * (1 - 1e-9) and draws[-1] <= median * above * (1 + 1e-9)
    assert np.median(draws) == pytest.approx(median, rel=1e-3)
    assert draws.mean() == pytest.approx(median * skew, rel=0.02)


@given(
    percent=st.floats(0.0001, 60),
    size=st.sampled_from([128, 256, 512, 1024]),
    row=st.sampled_from(list(TABLE_9)),
)
def test_pixels_stay_in_the_rows_range(percent, size, row):
    low, high = TABLE_9[row][2:4]
    count = to_pixels(percent, size, low, high)
    assert count >= 3
    assert count == 3 or low * (1 - 1e-9) <= count / size**2 * 100 <= high * (1 + 1e-9)
    if low < percent < high and percent / 100 * size**2 > 4:
        assert abs(count - percent / 100 * size**2) <= 1


@given(seed=st.integers(0, 10_000), share=st.floats(0.001, 0.9), hole=st.floats(0.0, 0.6), aspect=st.floats(1, 3))
@settings(max_examples=60, deadline=None)
def test_scaling_a_shape_to_an_area_is_exact_and_nested(seed, share, hole, aspect):
    rng = np.random.default_rng(seed)
    blob = Blob(rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), 0.2, aspect, rng.uniform(0, 3), waves(rng, 0.1))
    field = blob_field(blob, (slice(0, 48), slice(0, 48)), 48)
    free = rng.random((48, 48)) >= hole
    count = max(1, int(share * free.sum()))
    chosen, smaller = grow(field, free, count), grow(field, free, count // 2)
    assert chosen.sum() == count and not np.any(chosen & ~free)
    assert not np.any(smaller & ~chosen)
    # the obvious slow way: sort all free pixels
    order = sorted((field[r, c], r * 48 + c) for r, c in np.argwhere(free))
    assert set(np.flatnonzero(chosen)) == {index for _, index in order[:count]}
    assert grow_connected(field, free, count).sum() == count


def test_too_much_area_is_refused():
    with pytest.raises(ValueError, match="10 px asked for, 9 free"):
        grow(np.zeros((3, 3)), np.ones((3, 3), dtype=bool), 10)


def test_blob_field_is_one_on_an_ellipse():
    blob = Blob(0.5, 0.5, 0.25, 4.0, math.pi / 2)  # half axes 0.5 down and 0.125 across
    inside = blob_field(blob, (slice(0, 200), slice(0, 200)), 200) < 1
    assert inside.mean() == pytest.approx(math.pi * 0.5 * 0.125, rel=0.01)
    assert np.flatnonzero(inside.any(axis=0)).size == 50 and np.flatnonzero(inside.any(axis=1)).size == 200
