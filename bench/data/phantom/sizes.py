"""Object areas that follow Table 9: one fitted distribution per (data set, object)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import ndtr, ndtri

from experiments.paper import TABLE_9

SMALLEST_PX = 3  # a mask of fewer pixels is not a shape any more


@dataclass(frozen=True)
class AreaDistribution:
    """A two-piece log-normal, clipped to [low, high]; areas in percent of the image.

    Above the median log(area / median) is a half-normal of scale `upper`, below it one of scale `lower`. The
    median is exact by construction, `lower` makes the minimum what the smallest of `support` draws would be,
    and `upper` makes the mean right.
    """

    median: float
    lower: float
    upper: float
    low: float
    high: float

    def quantile(self, u: np.ndarray | float) -> np.ndarray:
        """Area in percent of the image at each u in (0, 1), float64, the shape of u."""
        z = ndtri(np.asarray(u, dtype=np.float64))
        scale = np.where(z < 0, self.lower, self.upper)
        return np.clip(self.median * np.exp(scale * z), self.low, self.high)


def _half_mean(scale: float, limit: float) -> float:
    """E[min(exp(scale z), limit)] over a normal z > 0; with a negative scale, the lower half and max."""
    edge = math.log(limit) / scale
    inside = math.exp(scale * scale / 2) * (ndtr(edge - scale) - ndtr(-scale))
    return float(2 * (inside + limit * ndtr(-edge)))


def fit_areas(mean: float, median: float, low: float, high: float, support: int) -> AreaDistribution:
    """The distribution with this mean, median and range (percent of the image), Table 9's columns.

    Where no upper scale gives the mean, the one that comes nearest is taken.
    """
    lower = math.log(median / low) / float(-ndtri(0.5 / support))
    wanted = 2 * mean / median - _half_mean(-lower, low / median)
    small, large = 1e-3, 4.0
    for _ in range(60):
        upper = (small + large) / 2
        small, large = (upper, large) if _half_mean(upper, high / median) < wanted else (small, upper)
    return AreaDistribution(median, lower, upper, low, high)


@cache
def areas_of(dataset: str, name: str) -> AreaDistribution:
    """The fitted distribution of a row of Table 9."""
    return fit_areas(*TABLE_9[dataset, name])


def pixel_range(image_size: int, low: float, high: float) -> tuple[int, int]:
    """The fewest and the most pixels of a square image that lie in [low, high] percent, and at least 3."""
    whole = image_size * image_size / 100
    least = max(SMALLEST_PX, math.ceil(low * whole - 1e-9))
    return least, max(least, math.floor(high * whole + 1e-9))


def to_pixels(percent: float, image_size: int, low: float, high: float) -> int:
    """Pixels of a mask of `percent` of a square image, inside [low, high] percent and at least 3.

    Rounding never leaves the range, except that a range that ends below 3 px becomes 3 px.
    """
    least, most = pixel_range(image_size, low, high)
    return min(max(round(percent * image_size * image_size / 100), least), most)
