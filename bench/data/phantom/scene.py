"""The slice while it is being drawn, and the few strokes everything is drawn with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from bench.data.phantom.difficulty import Difficulty
from bench.data.phantom.plan import SlicePlan, generator
from bench.data.phantom.shapes import (
    Blob,
    Tube,
    Window,
    blob_field,
    grow_connected,
    tube_cover,
    tube_field,
    window_around,
)


@dataclass
class Scene:
    """An unfinished slice, in radiological convention: the patient's right at the image's left, front on top.

    image: (S, S) float32, display units where 0 is black and 1 white; free: (S, S) bool, where an organ may
    still go; masks: object -> (S, S) bool; fine, coarse: (S, S) float32 textures of unit variance.
    """

    plan: SlicePlan
    size: int
    seed: int
    difficulty: Difficulty
    image: np.ndarray
    free: np.ndarray
    fine: np.ndarray
    coarse: np.ndarray
    body: Blob
    outline: np.ndarray  # (S, S) float32: 0 at the body's centre, 1 on the skin
    tissue: dict[str, float]
    counts: dict[str, int]  # px of each target's mask
    masks: dict[str, np.ndarray] = field(default_factory=dict)

    def rng(self, key: str) -> np.random.Generator:
        """The patient's generator for `key`: the same for all slices of the patient."""
        return generator(self.seed, self.plan.dataset, self.plan.patient, key)

    def slice_rng(self, key: str) -> np.random.Generator:
        """A generator of this slice alone."""
        return generator(self.seed, self.plan.dataset, self.plan.patient, self.plan.index, key)

    @property
    def half_width(self) -> float:
        """Half the body's width in image widths."""
        return self.body.radius * math.sqrt(self.body.aspect)

    @property
    def half_height(self) -> float:
        """Half the body's depth in image widths."""
        return self.body.radius / math.sqrt(self.body.aspect)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """From the body's frame (-1..1, centre 0, right and down) to image widths."""
        return self.body.x + x * self.half_width, self.body.y + y * self.half_height

    def pixels(self, percent: float) -> float:
        """The pixels of `percent` of the image."""
        return percent / 100 * self.size * self.size

    def largest_radius(self, name: str) -> float:
        """The radius, px, of a disc of the target's largest area in the patient's slices."""
        return math.sqrt(self.pixels(self.plan.largest[name]) / math.pi)


def shade(scene: Scene, mask: np.ndarray, value: float, fine: float = 0.0, coarse: float = 0.0) -> None:
    """Paints the mask in a tissue's value with its texture, which is noise to a segmentation."""
    fine, coarse = fine * scene.difficulty.noise, coarse * scene.difficulty.noise
    scene.image[mask] = value + fine * scene.fine[mask] + coarse * scene.coarse[mask]


def place(scene: Scene, blob: Blob, count: int, free: np.ndarray | None = None) -> np.ndarray:
    """The blob scaled to `count` free pixels: (S, S) bool, exactly so many. They are free no longer."""
    free = scene.free if free is None else free
    mask = np.zeros((scene.size, scene.size), dtype=bool)
    reach = 1.5 * blob.radius * math.sqrt(blob.aspect) + 2 / scene.size
    while True:
        window = window_around(blob.x, blob.y, reach, scene.size)
        # a third more free pixels than needed, or the window's corners would cut the shape
        if free[window].sum() > 1.3 * count or reach > 1.5:
            break
        reach *= 1.5
    part = free[window]
    mask[window] = grow_connected(blob_field(blob, window, scene.size), part, min(count, int(part.sum())))
    scene.free &= ~mask
    return mask


def place_tube(scene: Scene, tube: Tube, count: int, free: np.ndarray | None = None) -> np.ndarray:
    """As `place`, for a tube: widened or thinned until it has `count` free pixels."""
    free = scene.free if free is None else free
    reach = 2.5 * float(tube.widths.max()) * scene.size + 3
    while True:
        distance = tube_field(tube, scene.size, reach)
        found = free & np.isfinite(distance)
        if found.sum() > 1.3 * count or reach > scene.size:
            break
        reach *= 1.6
    window = _bounding(found)
    mask = np.zeros_like(free)
    part = found[window]
    mask[window] = grow_connected(distance[window], part, min(count, int(part.sum())))
    scene.free &= ~mask
    return mask


def _bounding(mask: np.ndarray) -> Window:
    """The smallest window that holds the mask's true pixels; the whole image where there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def inside(scene: Scene, blob: Blob, area: np.ndarray | None = None) -> np.ndarray:
    """The blob at its own size within `area` (default: anywhere): (S, S) bool. Takes no space."""
    mask = np.zeros((scene.size, scene.size), dtype=bool)
    window = window_around(blob.x, blob.y, 1.5 * blob.radius * math.sqrt(blob.aspect), scene.size)
    mask[window] = blob_field(blob, window, scene.size) < 1
    return mask if area is None else mask & area


def stroke(scene: Scene, tube: Tube, value: float, area: np.ndarray, strength: float = 1.0) -> None:
    """Paints a tube with soft edges within `area`; takes no space."""
    low = np.clip((tube.points.min(axis=0) * scene.size).astype(int) - 2, 0, None)
    high = (tube.points.max(axis=0) * scene.size).astype(int) + 3
    if not area[low[1] : high[1], low[0] : high[0]].any():  # most strokes of a lung miss it
        return
    window, cover = tube_cover(tube, scene.size)
    part = scene.image[window]  # a view: painted in place
    part += cover * area[window] * np.float32(strength) * (value - part)


def spot_in(
    scene: Scene, mask: np.ndarray, rng: np.random.Generator, margin: float, region: tuple[float, float, float, float]
) -> tuple[float, float]:
    """A point (x, y, image widths) of the mask at least `margin` px from its edge, or as far as it is deep.

    `region`, the centre and half the extent (x, y, dx, dy) in the body's frame, is where the point is drawn, before it
    is moved to the nearest deep enough pixel: with the same generator state and a similar mask a lesion stays where it
    was in the slice before.
    """
    size = mask.shape[0]
    x, y, dx, dy = region
    draws = rng.uniform(-1, 1, (12, 2))
    goals = [scene.at(x + dx * u, y + dy * v) for u, v in draws]
    if not mask.any():
        return 0.5, 0.5
    pixels = [np.clip((int(down * size), int(across * size)), 0, size - 1) for across, down in goals]
    goal = next((pixel for pixel in pixels if mask[tuple(pixel)]), pixels[0])
    rows, columns = _bounding(mask)
    depth = ndimage.distance_transform_edt(np.pad(mask[rows, columns], 1))[1:-1, 1:-1]
    deep = np.argwhere(depth >= min(margin, 0.7 * depth.max()))
    places = deep + np.array([rows.start, columns.start])
    row, column = places[np.argmin(((places - goal) ** 2).sum(axis=1))]
    return (column + 0.5) / size, (row + 0.5) / size
