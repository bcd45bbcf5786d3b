"""The augmentation of appendix A.5 as a crop and a quarter turn, on 8-bit pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

PROBABILITY, SHIFT, SCALE = 0.5, 0.1, 0.1


@dataclass(frozen=True)
class View:
    """What is seen of a square frame: the crop of `side` px at (top, left), resized to the frame, then turned.

    The crop may reach beyond the frame, where all is 0. turns: quarter turns, counter-clockwise.
    """

    top: int
    left: int
    side: int
    turns: int


def draw_view(size: int, rng: np.random.Generator) -> View | None:
    """With probability 0.5 a view of a frame of `size` px, else None: the frame as it is.

    The crop's centre is shifted by up to 10% of the frame in each direction, its side scaled by up to 10%, to whole
    pixels; it is turned by 0, 90, 180 or 270 degrees. All uniform.
    """
    chosen = rng.random() < PROBABILITY
    turns = int(rng.integers(4))
    shifts = rng.uniform(-SHIFT, SHIFT, 2) * size
    side = round(size * (1 + rng.uniform(-SCALE, SCALE)))
    top, left = (round((size - side) / 2 + shift) for shift in shifts)
    return View(top, left, side, turns) if chosen else None


def view_image(image: np.ndarray, view: View, out: np.ndarray) -> None:
    """Writes (S, S, 3) uint8 as `view` shows it into `out`, of the same shape and type; bilinear."""
    # a pixel is one item of three bytes: NumPy turns it in one go
    crop = _turned_crop(image.view("V3")[..., 0], view).view(np.uint8).reshape(view.side, view.side, 3)
    if view.side == len(out):
        out[:] = crop
        return
    pixels, target = (torch.from_numpy(array).permute(2, 0, 1)[None] for array in (crop, out))
    # F.interpolate would lay a single image out channel by channel, which costs more than the resizing
    torch.ops.aten.upsample_bilinear2d.out(pixels, out.shape[:2], False, out=target)


def view_mask(mask: np.ndarray, view: View, out: np.ndarray) -> None:
    """Writes (S, S) uint8 of 0 and 1 as `view` shows it into `out`, of the same shape and type; nearest.

    An object of a pixel or two that would fall between the rows or columns kept stays as the pixels nearest to it.
    """
    crop, size = _turned_crop(mask, view), len(mask)
    nearest = ((np.arange(size) + 0.5) * view.side / size).astype(int)
    crop[nearest].take(nearest, axis=1, out=out, mode="clip")  # other modes make a copy of `out` first
    if not out.any():
        rows, columns = ((place + 0.5) * size / view.side for place in crop.nonzero())
        out[rows.astype(int), columns.astype(int)] = 1


def _turned_crop(array: np.ndarray, view: View) -> np.ndarray:
    """(S, S) items -> (side, side)."""
    size = len(array)
    crop = np.zeros((view.side, view.side), array.dtype)
    rows, columns = (slice(max(0, start), min(size, start + view.side)) for start in (view.top, view.left))
    inside = array[rows, columns]
    top, left = rows.start - view.top, columns.start - view.left
    # what is written into the crop as it lies before it is turned, stands in it turned
    np.rot90(crop, -view.turns)[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return crop
