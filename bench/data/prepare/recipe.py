"""From one scan to its pictures: window, grey, square, size; the steps and numbers of BiomedParse's own processing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from skimage.transform import resize

from bench.data.images import parse_window, to_window
from bench.data.prepare.volume import Volume
from bench.data.prompts import phrases_of
from bench.errors import UserError

VERSION = 2  # raise it with any change to the pixels, names or prompts below
MR_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Options:
    """What a user may choose. The defaults are the authors'.

    size: side of the pictures in pixels. keep_empty: up to so many slices of a scan without any object.
    min_share: an object's mask is left out of slices where it is smaller than this share of its largest slice.
    window: a name of bench.data.images.WINDOWS or "CENTER,WIDTH" for all CT; None is the site's own.
    """

    size: int = 1024
    keep_empty: int = 0
    min_share: float = 0.1
    window: str | None = None


@dataclass(frozen=True)
class Picture:
    """image: (size, size) or (size, size, 3) uint8; masks: object -> (size, size) bool; sentences: object -> its."""

    stem: str
    image: np.ndarray
    masks: dict[str, np.ndarray]
    sentences: dict[str, tuple[str, ...]]


def pictures(volume: Volume, dataset: str, options: Options) -> Iterator[Picture]:
    """The slices of `volume` that show an object, and `options.keep_empty` of those that hold none, evenly spread.

    Raises UserError for a scan that cannot be read.
    """
    voxels = volume.load()
    areas = {name: mask.sum(axis=(1, 2)) for name, mask in voxels.masks.items()}
    large = {name: is_no_sliver(area, options.min_share) for name, area in areas.items()}
    none = np.zeros(len(voxels.values), bool)
    shown = np.logical_or.reduce([none, *large.values()])
    labelled = np.logical_or.reduce([none, *(area > 0 for area in areas.values())])
    low, high = _limits(volume, voxels.values, options.window)
    slices = np.arange(len(voxels.values))
    for index in sorted([*slices[shown], *evenly_spread(slices[~labelled], options.keep_empty)]):
        masks = {name: mask[index] for name, mask in voxels.masks.items() if large[name][index]}
        present = masks_to_size(masks, options.size)
        if shown[index] and not present:
            continue
        yield Picture(
            f"{volume.id}_{voxels.numbers[index]}_{volume.modality}_{volume.site}",
            image_to_size(to_window(voxels.values[index], low, high), options.size),
            present,
            {name: phrases_of(dataset, name, volume.modality, volume.site) for name in present},
        )


def is_no_sliver(areas: np.ndarray, min_share: float) -> np.ndarray:
    """(slices,) areas of an object -> (slices,) bool: it is there, with at least `min_share` of its largest area."""
    return (areas > 0) & (areas / max(areas.max(initial=0), 1) >= min_share)


def evenly_spread(items: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the items, the middles of as many equal stretches."""
    count = min(count, len(items))
    return items[((np.arange(count) + 0.5) * len(items) / max(count, 1)).astype(int)]


def image_to_size(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W) or (H, W, 3) of 0..255 -> (size, size) or (size, size, 3) uint8: squared, cubic, antialiased."""
    square = to_square(image)
    if len(square) == size:
        return np.rint(square).astype(np.uint8)
    matrix = _cubic(len(square), size)
    planes = square.astype(np.float32)[..., None] if square.ndim == 2 else square.astype(np.float32)
    scaled = np.stack([matrix @ plane @ matrix.T for plane in np.moveaxis(planes, 2, 0)], axis=2)
    # no overshoot beyond what was there
    scaled = np.rint(scaled.clip(square.min(), square.max())).astype(np.uint8)
    return scaled[..., 0] if square.ndim == 2 else scaled


@lru_cache(maxsize=8)
def _cubic(old: int, new: int) -> np.ndarray:
    """(new, old) float32: scikit-image's cubic resizing of one axis, which is linear, as a matrix.

    Four times as fast as `resize` on each picture and equal to it. Pillow's cubic is faster still, but another one: up
    to 5 grey levels away at edges.
    """
    return resize(np.eye(old, dtype=np.float32), (new, old), order=3, mode="constant", anti_aliasing=True, clip=False)


def masks_to_size(masks: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """(H, W) bool each -> (size, size) bool: padded to a square, nearest; without those that hold no pixel then."""
    scaled = {}
    for name, mask in masks.items():
        if mask.any():
            square = Image.fromarray(to_square(mask)).resize((size, size), Image.Resampling.NEAREST)
            scaled[name] = np.asarray(square)
    return {name: mask for name, mask in scaled.items() if mask.any()}


def to_square(array: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) padded with 0 to a square, equally on both sides; an odd pixel goes to the end."""
    height, width = array.shape[:2]
    side = max(height, width)
    before = (side - height) // 2, (side - width) // 2
    extra = [(before[0], side - height - before[0]), (before[1], side - width - before[1])]
    return np.pad(array, extra + [(0, 0)] * (array.ndim - 2))


def _limits(volume: Volume, values: np.ndarray, window: str | None) -> tuple[float, float]:
    if volume.window is not None:
        return parse_window(window or volume.window)
    positive = values[values > 0]
    if not positive.size:
        raise UserError(f"{volume.files[0]} has no positive value: it is no MR image; replace it")
    low, high = np.percentile(positive, MR_PERCENTILES)
    return float(low), float(high)
