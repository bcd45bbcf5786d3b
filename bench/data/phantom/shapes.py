"""Shapes as scalar fields: a shape of n pixels is the n pixels where its field is smallest, exactly n."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Blob:
    """An ellipse with a wavy outline. Lengths in image widths, angles in radians, x to the right, y down."""

    x: float
    y: float
    radius: float  # of the circle of equal area
    aspect: float = 1.0  # long axis / short axis, the long one along `angle`
    angle: float = 0.0
    waves: tuple[tuple[int, float, float], ...] = ()  # (periods, amplitude as a fraction of the radius, phase)


@dataclass(frozen=True)
class Tube:
    """A chain of points (n, 2) as x, y in image widths, with the half width (n,) of the tube at each."""

    points: np.ndarray
    widths: np.ndarray


def waves(rng: np.random.Generator, amount: float, periods: tuple[int, ...] = (2, 3, 4, 5)) -> tuple:
    """Random waves of a Blob's outline, fading with the number of periods."""
    return tuple((k, amount * rng.uniform(0.3, 1) * 2 / k, rng.uniform(0, 2 * math.pi)) for k in periods)


def window_around(x: float, y: float, reach: float, size: int) -> Window:
    """The part of a (size, size) image within `reach` (image widths) of the point, cut at the border."""
    row, column, half = y * size, x * size, reach * size + 2
    rows = slice(max(0, int(row - half)), min(size, int(row + half) + 1))
    columns = slice(max(0, int(column - half)), min(size, int(column + half) + 1))
    return rows, columns


def blob_field(blob: Blob, window: Window, size: int) -> np.ndarray:
    """Distance from the centre relative to the outline (1 on it), float32, the shape of the window."""
    rows, columns = window
    y = ((np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / size - blob.y)[:, None]
    x = ((np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) / size - blob.x)[None, :]
    stretch = math.sqrt(blob.aspect)
    cosine, sine = math.cos(blob.angle), math.sin(blob.angle)
    along = (x * cosine + y * sine) / np.float32(blob.radius * stretch)
    across = (y * cosine - x * sine) / np.float32(blob.radius / stretch)
    distance = np.hypot(along, across)
    if not blob.waves:
        return distance
    # cos(k angle) as the real part of unit ** k: much cheaper than an arc tangent and k cosines
    unit = (along + 1j * across) / np.maximum(distance, 1e-6)
    outline = np.ones_like(distance)
    power, reached = unit, 1
    for periods, amplitude, phase in blob.waves:
        while reached < periods:
            power, reached = power * unit, reached + 1
        outline += amplitude * (power.real * math.cos(phase) + power.imag * math.sin(phase))
    return distance / np.maximum(outline, 0.2)


def _distances(tube: Tube, size: int, reach: float) -> tuple[Window, np.ndarray, np.ndarray, np.ndarray]:
    """The window around a tube; for the pixels near each point flat index, distance and half width (px)."""
    half = math.ceil(reach)
    offset = np.arange(-half, half + 1)
    centre = np.floor(tube.points * size).astype(np.int64)
    low = np.clip(centre.min(axis=0) - half, 0, size - 1)
    high = np.clip(centre.max(axis=0) + half + 1, low + 1, size)
    columns = centre[:, 0, None, None] + offset[None, None, :]
    rows = centre[:, 1, None, None] + offset[None, :, None]
    dx = columns + 0.5 - tube.points[:, 0, None, None] * size
    dy = rows + 0.5 - tube.points[:, 1, None, None] * size
    inside = (rows >= low[1]) & (rows < high[1]) & (columns >= low[0]) & (columns < high[0])
    width = np.broadcast_to(tube.widths[:, None, None] * size, inside.shape)
    index = ((rows - low[1]) * (high[0] - low[0]) + columns - low[0])[inside]
    return (slice(low[1], high[1]), slice(low[0], high[0])), index, np.hypot(dx, dy)[inside], width[inside]


def _shape(window: Window) -> tuple[int, int]:
    rows, columns = window
    return int(rows.stop - rows.start), int(columns.stop - columns.start)


def tube_field(tube: Tube, size: int, reach: float) -> np.ndarray:
    """Distance to the nearest point over its half width, float32 (size, size); inf beyond `reach` px."""
    window, index, distance, width = _distances(tube, size, reach)
    part = np.full(math.prod(_shape(window)), np.inf, dtype=np.float32)
    np.minimum.at(part, index, (distance / width).astype(np.float32))
    field = np.full((size, size), np.inf, dtype=np.float32)
    field[window] = part.reshape(_shape(window))
    return field


def tube_cover(tube: Tube, size: int) -> tuple[Window, np.ndarray]:
    """How much of each pixel of a window the tube covers, 0..1, float32; a thin tube is faint."""
    window, index, distance, width = _distances(tube, size, float(tube.widths.max()) * size + 1.5)
    cover = np.zeros(math.prod(_shape(window)), dtype=np.float32)
    part = np.clip(width + 0.5 - distance, 0, 1) * np.minimum(1, 2 * width)
    np.maximum.at(cover, index, part.astype(np.float32))
    return window, cover.reshape(_shape(window))


def chain(corners: np.ndarray, widths: np.ndarray, count: int) -> Tube:
    """A Tube of `count` points along a rounded path near `corners` (k, 2), with `widths` (k,) likewise."""
    place = np.linspace(0, 1, len(corners))
    fine = np.linspace(0, 1, count)
    columns = [np.interp(fine, place, column) for column in (*corners.T, widths)]
    smooth = [ndimage.gaussian_filter1d(column, count / len(corners) / 2.5, mode="nearest") for column in columns]
    return Tube(np.stack(smooth[:2], axis=1), smooth[2])


def grow(field: np.ndarray, free: np.ndarray, count: int) -> np.ndarray:
    """The `count` free pixels where the field is smallest: bool, the field's shape.

    This scales a shape to an area: the level sets of a field are nested, and a pixel count is met exactly.
    Ties go to the earlier pixel in row order. Raises ValueError if fewer pixels are free and finite.
    """
    candidates = np.flatnonzero(free & np.isfinite(field))
    if count > candidates.size:
        raise ValueError(f"{count} px asked for, {candidates.size} free")
    chosen = np.zeros(field.size, dtype=bool)
    if count == 0:
        return chosen.reshape(field.shape)
    values = field.ravel()[candidates]
    level = np.partition(values, count - 1)[count - 1]
    below = candidates[values < level]
    chosen[below] = True
    chosen[candidates[values == level][: count - below.size]] = True
    return chosen.reshape(field.shape)


def grow_connected(field: np.ndarray, free: np.ndarray, count: int) -> np.ndarray:
    """As `grow`, but in one piece where the free space allows: an organ does not jump over its neighbour."""
    chosen = grow(field, free, count)
    labels, pieces = ndimage.label(chosen)
    if pieces <= 1:
        return chosen
    spaces, _ = ndimage.label(free)
    largest = int(np.argmax(np.bincount(labels.ravel())[1:])) + 1
    space = spaces == spaces.ravel()[np.flatnonzero(labels == largest)[0]]
    if space.sum() < count:
        return chosen
    # fill outwards from the largest piece, level by level, only where it is reached
    piece = labels == largest
    for factor in (1.15, 1.3, 1.6, 2.0, np.inf):
        limit = float(field[chosen].max()) * factor
        allowed = space & (field <= limit) if np.isfinite(limit) else space & np.isfinite(field)
        reachable, _ = ndimage.label(allowed)
        allowed = reachable == reachable[piece][0]
        if allowed.sum() >= count:
            return grow(field, allowed, count)
    return chosen
