"""Is the phantom a fair task? What an oracle finds in a noise-free slice, and what intensity alone finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

MARGIN = 3  # px on both sides of an object's edge that `recover` is not told of
STEP = 4  # grey levels between the candidates of `best_window`


def recover(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask as far as its boundary is visible in `image`: (H, W) uint8 and bool -> (H, W) bool.

    An oracle that knows the object's place, not its outline: given is what lies more than MARGIN px inside (where it
    is thin, its deeper half) and outside, and each pixel between goes to the side it is reached from over the smaller
    steps of intensity. An edge without contrast comes out anywhere between.
    """
    window = ndimage.find_objects(ndimage.binary_dilation(mask, iterations=MARGIN + 2).astype(np.uint8))[0]
    part = mask[window]
    depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    pieces, count = ndimage.label(part, np.ones((3, 3)))
    every = np.arange(1, count + 1)
    deepest = np.array([0.0, *ndimage.maximum(depth, pieces, every)])
    inside = (depth > 1) & (depth > np.minimum(MARGIN, deepest[pieces] / 2))
    inside[tuple(np.transpose(ndimage.maximum_position(depth, pieces, every)))] = True  # of the smallest, one pixel
    outside = ndimage.distance_transform_edt(~part) > MARGIN
    markers = np.where(inside, 1, np.where(outside, 2, 0)).astype(np.int16)
    found = np.zeros_like(mask)
    found[window] = ndimage.watershed_ift(image[window], markers) == 1
    return found


def best_window(images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> tuple[int, int]:
    """The window low <= intensity < high of highest mean Dice over slices: images uint8, masks bool, (H, W) each."""
    edges = np.arange(0, 256 + STEP, STEP)
    dice = np.zeros((edges.size, edges.size))
    for image, mask in zip(images, masks, strict=True):
        # pixels below each edge, of the image and of the mask
        below = np.concatenate([[0], np.histogram(image, edges)[0].cumsum()])
        hits = np.concatenate([[0], np.histogram(image[mask], edges)[0].cumsum()])
        found = below[None, :] - below[:, None]
        dice += np.where(found > 0, 2 * (hits[None, :] - hits[:, None]) / np.maximum(found + mask.sum(), 1), 0)
    low, high = np.unravel_index(dice.argmax(), dice.shape)
    return int(edges[low]), int(edges[high])
