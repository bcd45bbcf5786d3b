"""What the figures choose and show; that they are drawn is checked on their pixels."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reports import figures
from reports.aggregate import score
from reports.grid import check_grid
from reports.load import load_suite
from reports.statistics import cluster_bootstrap
from reports.strata import GROUPS, members


@pytest.fixture
def loaded(build, tmp_path):
    results = load_suite(build.suite(tmp_path, size=48))
    grid = check_grid(results)
    return results, grid, score(results.records, grid)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def count(picture, color, tolerance=40):
    return int((np.abs(picture - np.array(color)).max(axis=2) < tolerance).sum())


def test_cases_are_the_median_of_each_data_set_and_the_smallest():
    areas = {"d": [0.5, 0.1, 0.9], "e": [0.2, 0.05, 0.3, 0.4]}
    rows = [(name, "o", str(i), "p", area) for name in areas for i, area in enumerate(areas[name])]
    cases = pd.DataFrame(rows, columns=["dataset", "object", "image_id", "prompt", "area_pct"])
    chosen = cases.loc[figures.choose_cases(cases, ("d", "e", "absent"))]
    assert chosen["area_pct"].tolist() == [0.5, 0.2, 0.05]
    one = cases.loc[[4]]
    assert figures.choose_cases(one, ("e",)) == [4]  # median and smallest are the same mask: shown once


@given(st.integers(4, 60), st.integers(4, 60), st.data())
def test_crop_is_a_square_inside_the_image_around_the_object(height, width, data):
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top, height - 1)), data.draw(st.integers(left, width - 1))
    truth = np.zeros((height, width), bool)
    truth[top : bottom + 1, left : right + 1] = True
    up, start, down, end = figures.crop_box(truth)
    assert down - up == end - start <= min(height, width)
    assert up >= 0 and start >= 0 and down <= height and end <= width
    if max(bottom - top, right - left) < min(height, width):
        assert truth[up:down, start:end].sum() == truth.sum()


def test_overlays_draw_truth_and_masks(loaded):
    png, notes = figures.overlays(*loaded[:1], loaded[2], loaded[1])
    picture = pixels(png)
    assert notes == []
    assert count(picture, (255, 32, 32)) > 200  # outlines
    assert ((picture[..., 1] - picture[..., 0] > 50) & (picture[..., 1] - picture[..., 2] > 20)).sum() > 200


def test_overlays_say_which_image_is_gone(loaded, tmp_path):
    results, grid, scores = loaded
    for path in (tmp_path / "data" / "LIDC-IDRI" / "test").iterdir():
        path.unlink()
    png, notes = figures.overlays(results, scores, grid)
    assert png is not None and notes and all("LIDC-IDRI" in note and ".png" in note for note in notes)


def test_overlays_refuse_an_image_of_another_size(loaded, tmp_path):
    results, grid, scores = loaded
    for path in (tmp_path / "data").glob("*/test/*.png"):
        Image.new("RGB", (9, 9)).save(path)
    png, notes = figures.overlays(results, scores, grid)
    assert png is None and "no longer 48 x 48 px" in notes[0]


def test_dice_vs_size_and_curves_have_each_methods_colour(loaded):
    results, grid, scores = loaded
    bootstrap = cluster_bootstrap(scores, members(scores.cases["area_pct"], GROUPS), draws=50)
    sizes = pixels(figures.dice_vs_size(scores, grid, bootstrap, True))
    curves = pixels(figures.curves(results, True))
    for place in range(3):
        color = [int(figures.COLORS[place][at : at + 2], 16) for at in (1, 3, 5)]
        assert count(sizes, color, 8) > 100
        # nnU-Net, the third, has no history in this suite
        assert (count(curves, color, 8) > 100) == (place < 2)
