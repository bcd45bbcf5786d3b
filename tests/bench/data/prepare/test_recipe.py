from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage import transform

from bench.data.prepare.recipe import (
    Options,
    evenly_spread,
    image_to_size,
    is_no_sliver,
    masks_to_size,
    pictures,
    to_square,
)
from bench.data.prepare.volume import Volume, Voxels
from bench.errors import UserError


def load(values, masks):
    return Voxels(values, masks, tuple(range(100, 100 + len(values))))


def volume(values, masks, window="lung"):
    modality = "CT" if window else "MRI"
    return Volume(
        "case_1", "case_1", modality, "lung", window, "train", (Path("case_1.nii"),), partial(load, values, masks)
    )


def by_the_authors(values: np.ndarray, low: float, high: float, size: int) -> np.ndarray:
    """The steps of BiomedParse's processing, in floating point to the end."""
    grey = (np.clip(values, low, high) - low) / (high - low) * 255.0
    rows, columns = grey.shape
    pad = (max(rows, columns) - rows) // 2, (max(rows, columns) - columns) // 2
    grey = np.pad(grey, ((pad[0], pad[0]), (pad[1], pad[1])))
    return transform.resize(grey, (size, size), order=3, mode="constant", preserve_range=True, anti_aliasing=True)


@pytest.mark.parametrize("shape", [(64, 64), (80, 64), (50, 90)])
@pytest.mark.parametrize("size", [40, 128, 200])
def test_grey_is_the_authors_within_a_level(shape, size):
    rng = np.random.default_rng(0)
    values = rng.normal(-300, 700, (1, *shape))
    picture = next(pictures(volume(values, {"tumor": np.ones(values.shape, bool)}), "set", Options(size=size)))
    assert picture.image.dtype == np.uint8 and picture.image.shape == (size, size)
    difference = picture.image - by_the_authors(values[0], -1000, 1000, size)
    assert np.abs(difference).max() <= 0.51  # rounding


@pytest.mark.parametrize(("shape", "size"), [((64, 64), 128), ((63, 63), 128), ((80, 64), 128), ((50, 90), 64)])
def test_masks_are_the_authors(shape, size):
    mask = np.random.default_rng(0).random(shape) > 0.5
    square = np.pad(mask, [((max(shape) - n) // 2,) * 2 for n in shape])
    theirs = transform.resize(
        1 * square, (size, size), order=0, mode="constant", preserve_range=True, anti_aliasing=False
    )
    np.testing.assert_array_equal(masks_to_size({"tumor": mask}, size)["tumor"], theirs > 0)


def test_mr_is_scaled_by_the_positive_voxels_of_the_scan():
    values = np.random.default_rng(0).gamma(2.0, 100, (3, 32, 32))
    values[:, :8] = 0
    ordered = np.sort(values[values > 0])
    low, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.005, 0.995))
    scan = volume(values, {"tumor": np.ones(values.shape, bool)}, window=None)
    for index, picture in enumerate(pictures(scan, "set", Options(size=32))):
        assert not picture.image[:8].any()
        expected = ((values[index] - low) / (high - low)).clip(0, 1) * 255
        np.testing.assert_allclose(picture.image, expected, rtol=0.01, atol=1)
    with pytest.raises(UserError, match=r"case_1\.nii has no positive value"):
        next(pictures(volume(values * 0 - 1, {}, window=None), "set", Options()))


@given(st.integers(1, 40), st.integers(1, 40))
def test_padding_is_equal_on_both_sides(rows, columns):
    square = to_square(np.ones((rows, columns), np.uint8))
    assert square.shape == (max(rows, columns),) * 2
    assert square.sum() == rows * columns
    at = np.argwhere(square)
    before, after = at.min(0), len(square) - 1 - at.max(0)
    assert ((after - before >= 0) & (after - before <= 1)).all()


@given(st.lists(st.integers(0, 100), max_size=8), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_slivers_are_under_a_share_of_the_largest_slice(areas, share):
    percent = round(100 * share)  # in whole numbers: 7 is a tenth of 70
    expected = [area > 0 and 100 * area >= percent * max(areas) for area in areas]
    assert is_no_sliver(np.array(areas, int), share).tolist() == expected


def test_the_published_masks_are_no_slivers(shared):
    """The rule is the authors': no mask in their lists is under a tenth of the largest of its scan and object."""
    import pandas as pd

    lists = sorted((shared / "data" / "biomedparse_results").glob("**/mask_stats.csv"))
    assert len(lists) == 5
    for file in lists:
        table = pd.read_csv(file)
        parts = table["fname"].str.rsplit("_", n=4)
        largest = table.groupby([parts.str[0], parts.str[-1]])["mask_area"].transform("max")
        assert (table["mask_area"] / largest).min() >= Options().min_share


def test_only_slices_with_objects_and_the_empty_ones_asked_for():
    masks = np.zeros((9, 8, 8), bool)
    masks[3, :, :], masks[4, :, :], masks[5, 0, 0] = True, True, True  # the last is a sliver: neither shown nor empty
    scan = volume(np.zeros((9, 8, 8)), {"tumor": masks})

    def stems(**options):
        return [int(p.stem.split("_")[2]) for p in pictures(scan, "set", Options(size=16, **options))]

    assert stems() == [103, 104]
    assert stems(min_share=0) == [103, 104, 105]
    assert stems(keep_empty=2) == [101, 103, 104, 107]
    assert stems(keep_empty=99) == [100, 101, 102, 103, 104, 106, 107, 108]
    empty = [p for p in pictures(scan, "set", Options(size=16, keep_empty=2)) if not p.masks]
    assert [p.stem for p in empty] == ["case_1_101_CT_lung", "case_1_107_CT_lung"]


@given(st.integers(0, 30), st.integers(0, 40))
def test_evenly_spread(number, count):
    chosen = evenly_spread(np.arange(number), count)
    assert len(set(chosen.tolist())) == len(chosen) == min(number, count)
    gaps = np.diff(chosen)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_an_object_that_vanishes_when_shrunk_is_left_out():
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 1, 1], masks[1, 10:40, 10:40] = True, True
    scan = volume(np.zeros(masks.shape), {"tumor": masks})
    assert [p.stem for p in pictures(scan, "set", Options(size=16, min_share=0))] == ["case_1_101_CT_lung"]


def test_colours_are_scaled_one_by_one():
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    scaled = image_to_size(image, 48)
    for channel in range(3):
        expected = by_the_authors(image[..., channel], 0, 255, 48)
        assert np.abs(scaled[..., channel] - expected).max() <= 0.51


def test_an_image_of_the_right_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(image_to_size(image, 32), image)
