import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bench.data import augment
from bench.data.augment import View, draw_view

SIZE = 32


def views(number=400, size=SIZE):
    rng = np.random.default_rng(0)
    return [draw_view(size, rng) for _ in range(number)]


def view_image(image, view):
    augment.view_image(image, view, out := np.empty_like(image))
    return out


def view_mask(mask, view):
    augment.view_mask(mask, view, out := np.empty_like(mask))
    return out


def by_hand(array, view):
    """The crop pixel by pixel, turned; without resizing."""
    crop = np.zeros((view.side, view.side, *array.shape[2:]), array.dtype)
    for row in range(view.side):
        for column in range(view.side):
            y, x = row + view.top, column + view.left
            if 0 <= y < len(array) and 0 <= x < len(array):
                crop[row, column] = array[y, x]
    return crop


def test_half_of_the_images_are_seen_otherwise_within_the_limits_of_appendix_a5():
    drawn = views(4000, size=1000)
    seen = [view for view in drawn if view is not None]
    assert 0.47 < len(seen) / len(drawn) < 0.53
    sides = np.array([view.side for view in seen])
    shifts = np.array([(view.top + view.side / 2 - 500, view.left + view.side / 2 - 500) for view in seen])
    for values, limit in ((sides - 1000, 100), (shifts, 100)):
        assert np.abs(values).max() <= limit + 1
        assert abs(values.mean()) < 5  # uniform: the mean is 0, its error 100 / sqrt(3 * 2000)
        assert values.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
    assert np.bincount([view.turns for view in seen]) / len(seen) == pytest.approx([0.25] * 4, abs=0.04)


@pytest.mark.parametrize("view", [view for view in views(40) if view])
def test_the_image_is_cropped_resized_and_turned(view):
    image = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    places = (np.arange(SIZE) + 0.5) * view.side / SIZE - 0.5
    grid = np.meshgrid(places, places, indexing="ij")
    channels = np.moveaxis(by_hand(image, view).astype(float), 2, 0)
    resized = np.stack([ndimage.map_coordinates(c, grid, order=1, mode="nearest") for c in channels], axis=-1)
    difference = view_image(image, view) - np.rot90(resized, view.turns)
    assert np.abs(difference).max() <= 1


@given(turns=st.integers(0, 3), top=st.integers(-3, 3), left=st.integers(-3, 3))
@settings(deadline=None, max_examples=30)
def test_turns_and_shifts_alone_are_exact(turns, top, left):
    rng = np.random.default_rng(2)
    image, mask = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8), rng.integers(0, 2, (SIZE, SIZE), np.uint8)
    view = View(top, left, SIZE, turns)
    np.testing.assert_array_equal(view_image(image, view), np.rot90(by_hand(image, view), turns))
    np.testing.assert_array_equal(view_mask(mask, view), np.rot90(by_hand(mask, view), turns))


def test_masks_move_with_the_pixels_under_them():
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 16:32] = mask[8:14, 40:48] = 1
    image = np.where(mask, 220, 20).astype(np.uint8)[..., None].repeat(3, axis=2)
    for view in views(200, size=64):
        if view is not None:
            seen = view_image(image, view)[..., 0] > 120
            moved = view_mask(mask, view).astype(bool)
            assert (seen & moved).sum() / (seen | moved).sum() > 0.93


def test_one_pixel_survives_wherever_it_lands():
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[15, 17] = 1
    areas = [view_mask(mask, view).sum() for view in views() if view]
    assert min(areas) == 1
    assert max(areas) <= 4


def test_an_object_cropped_out_leaves_an_empty_mask():
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[0, 0] = 1
    assert {int(view_mask(mask, view).sum()) for view in views() if view} >= {0, 1}
