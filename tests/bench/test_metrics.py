import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.metrics import TOLERANCES, counts, lesions, surfaces
from bench.predict import confidences
from bench.records import decode_mask, encode_mask

MASKS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(prediction=arrays(bool, (5, 7)), truth=arrays(bool, (5, 7)))
def test_counts_against_a_loop(prediction, truth):
    pairs = list(zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True))
    assert counts(prediction, truth) == tuple(
        pairs.count(pair) for pair in [(True, True), (True, False), (False, True)]
    )


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="prediction is"):
        counts(np.zeros((2, 3), bool), np.zeros((3, 2), bool))


@given(MASKS)
def test_run_lengths_come_back(mask):
    runs = encode_mask(mask)
    assert sum(runs) == mask.size
    np.testing.assert_array_equal(decode_mask(runs, *mask.shape), mask)


def shapes(seed):
    """Pairs of masks as they come: discs that overlap more or less, several parts, objects of a few pixels."""
    random = np.random.default_rng(seed)
    ys, xs = np.mgrid[:48, :40]
    masks = []
    for _ in range(2):
        mask = np.zeros((48, 40), bool)
        for _ in range(random.integers(1, 4)):
            y, x, r = random.uniform(4, 44), random.uniform(4, 36), random.choice([0.7, 1.5, 4.0, 8.0])
            mask |= (ys - y) ** 2 + (xs - x) ** 2 <= r**2
        masks.append(mask)
    return masks


@pytest.mark.parametrize("seed", range(6))
def test_surfaces_against_monai(seed):
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    prediction, truth = shapes(seed)
    found = surfaces(prediction, truth)
    one_hot = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    for px in TOLERANCES:
        expected = compute_surface_dice(*one_hot, class_thresholds=[px], include_background=True, use_subvoxels=True)
        assert found[f"nsd_{px}"] == pytest.approx(expected.item(), abs=1e-5)
    expected = compute_hausdorff_distance(*one_hot, include_background=True, percentile=95)
    # MONAI takes the percentile of distances, surface-distance weighs them by the contour's length
    assert found["hd95"] == pytest.approx(expected.item(), rel=0.1, abs=1.0)


def test_surfaces_of_known_shapes():
    square = np.zeros((40, 40), bool)
    square[10:20, 10:20] = True
    assert surfaces(square, square) == {"nsd_1": 1, "nsd_2": 1, "nsd_4": 1, "hd95": 0}
    moved = surfaces(np.roll(square, 3, axis=1), square)
    assert moved["hd95"] == pytest.approx(3) and moved["nsd_4"] == 1 and moved["nsd_1"] < moved["nsd_2"] < 1
    empty = np.zeros_like(square)
    for pair in ((empty, square), (square, empty)):
        found = surfaces(*pair)
        assert found["nsd_4"] == 0 and math.isnan(found["hd95"])
    assert all(math.isnan(value) for value in surfaces(empty, empty).values())


def test_lesions_against_flood_fill():
    def parts(mask):
        """Sets of pixels that touch, corners too."""
        left, found = set(map(tuple, np.argwhere(mask))), []
        while left:
            front, part = [left.pop()], set()
            while front:
                y, x = front.pop()
                part.add((y, x))
                near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
                left -= near
                front += near
            found.append(part)
        return found

    for seed in range(8):
        prediction, truth = shapes(seed)
        hit = lambda of, by: sum(any(by[pixel] for pixel in part) for part in parts(of))  # noqa: E731
        assert lesions(prediction, truth) == {
            "lesions": len(parts(truth)), "found": hit(truth, prediction),
            "detections": len(parts(prediction)), "hits": hit(prediction, truth),
        }  # fmt: skip
    empty = np.zeros((4, 4), bool)
    assert set(lesions(empty, empty).values()) == {0}


def test_confidence_by_hand():
    logits = torch.tensor([[[2.0, 1.0], [-1.0, -3.0]], [[-1.0, -2.0], [-0.5, -4.0]]])
    found = confidences(logits)
    assert found[0] == pytest.approx((1 / (1 + math.exp(-2)) + 1 / (1 + math.exp(-1))) / 2)
    assert found[1] == pytest.approx(1 / (1 + math.exp(0.5)))  # an empty mask: the highest
