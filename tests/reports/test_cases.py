"""Which cases the browser has, and what their overlays show."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from reports.aggregate import score
from reports.cases import BEST, MIDDLE, SIDE, WORST, browser_cases, choose
from reports.grid import check_grid
from reports.load import load_suite


def loaded(suite):
    results = load_suite(suite)
    grid = check_grid(results)
    return results, grid, score(results.records, grid)


def test_worst_middle_and_best_of_each_data_set(build):
    rows = []
    for method, step in (("a", 1), ("b", -1)):
        for index in range(20):
            tp = 30 + step * index  # Dice rises with the index for a and falls for b
            rows.append({"method": method, "image_id": f"{index:02}", "patient": f"{index}", "tp": tp, "fn": 60 - tp})
    grid, scores = build.scores(build.frame(rows))
    images = scores.cases["image_id"].astype(int)
    expected = [*range(WORST), 9, 10, 18, 19]
    assert len(expected) == WORST + MIDDLE + BEST
    assert images[choose(scores, grid, "a")].tolist() == expected
    assert images[choose(scores, grid, "b")].tolist() == [19 - index for index in expected]
    assert choose(scores, grid, "not run") == choose(scores, grid, "a")


def pixels(uri):
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert picture.size == (SIDE, SIDE)
    return np.asarray(picture.convert("RGB")).astype(int)


def test_overlays_show_mask_and_truth(build, tmp_path):
    results, grid, scores = loaded(build.suite(tmp_path, size=64, patients=3))
    cases = browser_cases(results, grid, scores)
    assert cases and all(len(case.overlays) == 3 for case in cases)
    greener = 0
    for case in cases:
        plain = pixels(case.uri)
        assert (plain[..., 0] - plain[..., 1:].max(axis=2) > 60).any()  # the truth's red outline
        for overlay in case.overlays:
            with_mask = pixels(overlay.uri)
            added = (with_mask[..., 1] - with_mask[..., 0]) - (plain[..., 1] - plain[..., 0])
            greener += (added > 40).sum() > 20
        assert json.loads(case.dice) == {overlay.method: overlay.dice for overlay in case.overlays}
    assert greener > len(cases)  # masks of one or two pixels can lie under the outline


def test_cases_without_files_are_left_out(build, tmp_path):
    suite = build.suite(tmp_path, size=32, patients=2)
    every = browser_cases(*loaded(suite))
    shutil.rmtree(tmp_path / "data" / "zebra")
    assert {case.dataset for case in browser_cases(*loaded(suite))} == {c.dataset for c in every} - {"zebra"}


def test_nothing_complete_nothing_chosen(build):
    grid, scores = build.scores(build.frame([]))
    assert choose(scores, grid, None) == []


@pytest.mark.parametrize("both", [True, False])
def test_a_row_without_masks_has_no_overlay(build, tmp_path, both):
    suite = build.suite(tmp_path, size=32, patients=2)
    for folder in suite.glob("sam-*" if not both else "*-seed0-*"):
        (folder / "predictions.parquet").unlink()
    cases = browser_cases(*loaded(suite))
    assert (cases == []) if both else all(len(case.overlays) == 2 for case in cases)
