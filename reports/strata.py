"""Size of an object as a percentage of the image area, and the size groups of the tables."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

SMALL_BELOW = 1.0  # percent of the image area; section 4.3
BIN_EDGES = (0.05, 0.1, 0.25, 0.5, 1.0, 5.0)  # percent; with 0 and infinity around them, seven bins


@dataclass(frozen=True)
class Group:
    """Objects with lower <= area < upper, in percent of the image area."""

    label: str
    lower: float
    upper: float


def _bins() -> tuple[Group, ...]:
    edges = [0.0, *BIN_EDGES, np.inf]
    labels = [f"<{BIN_EDGES[0]:g}%"]
    labels += [f"{low:g}-{high:g}%" for low, high in pairwise(BIN_EDGES)]
    labels += [f">={BIN_EDGES[-1]:g}%"]
    return tuple(Group(*item) for item in zip(labels, edges[:-1], edges[1:], strict=True))


BINS = _bins()
SMALL = Group(f"Small (<{SMALL_BELOW:g}%)", 0.0, SMALL_BELOW)
LARGE = Group(f"Large (>={SMALL_BELOW:g}%)", SMALL_BELOW, np.inf)
ALL = Group("All", 0.0, np.inf)
GROUPS = (SMALL, LARGE, ALL, *BINS)  # the rows of by_size


def area_percent(area_px: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Area of objects, (n,) pixels, as float64 percent of their image.

    The product with 100 comes first: an object of exactly 1% then gives exactly 1.0, on the right side of the
    edge.
    """
    pixels = np.asarray(height, dtype=np.int64) * np.asarray(width, dtype=np.int64)
    return 100 * np.asarray(area_px, dtype=np.int64) / pixels


def members(percent: np.ndarray, groups: tuple[Group, ...] = GROUPS) -> np.ndarray:
    """(n,) areas in percent -> (n, len(groups)) bool: which object belongs to which group."""
    percent = np.asarray(percent, dtype=np.float64)[:, None]
    lower = np.array([group.lower for group in groups])
    upper = np.array([group.upper for group in groups])
    return (percent >= lower) & (percent < upper)
