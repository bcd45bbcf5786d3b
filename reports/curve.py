"""Dice against object area as a continuous curve with a band: local regression over the masks, bootstrap over patients.

The curve is LOWESS (Cleveland 1979) without its robust steps, which would take complete misses for outliers. A
bootstrap over patients needs it weighted, once per draw and method, which statsmodels' `lowess` cannot do: here each
patient's part in the sums behind the local fits is added up once, and a draw is a product of its weights with these
sums. No mask is left out and nothing is binned, and 40,000 masks of twelve methods take seconds.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import sparse

from reports.aggregate import Scores
from reports.drawing import COLORS, Drawing, drawing_of, legend_below, style_of
from reports.grid import Grid
from reports.modality import modalities_of
from reports.statistics import LEVEL
from reports.tables import Column, Table

SPAN = 0.4  # share of the masks in each local fit
POINTS = 40  # of a curve, equally far apart in log area
DRAWS = 1_000
FLAT = 1e-3  # of the range of x: where the neighbours of a point spread less, no slope can be told
PANELS = 6  # small ones beside that of all masks
LINES = ("-", "--", ":", "-.")  # the next when colours begin again
ALL_MASKS = "all"
CURVE_CAPTION = (
    f"LOWESS over the logarithm of the area: at each point a line through the nearest {SPAN:.0%} of the masks, by "
    f"their distance. Band: 95% interval at each point over {DRAWS:,} bootstrap draws of patients within data sets. "
    "Every mask counts once, where the table by size weighs data sets. Points: dice_vs_area.csv."
)


def dice_vs_area(scores: Scores, grid: Grid, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """The curves of all complete rows: columns part, area_pct, method, dice, low, high (percent), low and high being
    the 95% interval at each point.

    part: "all", then each data set and each modality, where there are several. Every mask counts once, its Dice
    averaged over the seeds and prompts that there are; masks without a target are left out.
    """
    cases, dice = _masks(scores)
    parts = {ALL_MASKS: np.ones(len(cases), bool)}
    by_dataset = {name: (cases["dataset"] == name).to_numpy(dtype=bool) for name in grid.datasets}
    for group in ({name: inside for name, inside in by_dataset.items() if inside.any()}, modalities_of(cases)):
        parts |= group if len(group) > 1 else {}
    labels = [row.label for row, complete in zip(grid.rows, scores.complete, strict=True) if complete]
    frames = []
    for part, inside in parts.items():
        if not inside.any():
            continue
        masks, values = cases.loc[inside], dice[inside][:, scores.complete]
        log_area = np.log10(masks["area_pct"].to_numpy())
        at = np.unique(np.linspace(log_area.min(), log_area.max(), POINTS))
        curves = smooth(log_area, values, masks[["dataset", "patient"]], at, draws, seed)
        for label, (estimate, low, high) in zip(labels, np.moveaxis(curves, -1, 0), strict=True):
            columns = {"part": part, "area_pct": 10**at, "method": label, "dice": estimate, "low": low, "high": high}
            frames.append(pd.DataFrame(columns))
    columns = ["part", "area_pct", "method", "dice", "low", "high"]
    return pd.concat(frames, ignore_index=True).dropna() if frames else pd.DataFrame(columns=columns)


def smooth(
    x: np.ndarray, y: np.ndarray, clusters: pd.DataFrame, at: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """LOWESS of R variables y (n, R) over x (n,) at G points, and its 95% interval: (3, G, R) curve, low and high.

    clusters: n rows of dataset and patient; patients are drawn with replacement within data sets, as in
    `cluster_bootstrap`, the same for every column of y. At a point: straight line through the nearest SPAN of the n,
    weighted by the tricube of their distance over that of the farthest; in a draw also by how often their patient was
    drawn, the neighbourhood staying as it is. NaN in y is left out. Results stay within the range of y.
    """
    offset, kernel = _neighbours(x, at)
    patients = clusters.groupby(["dataset", "patient"], sort=True, observed=True).ngroup().to_numpy()
    indicator = sparse.csr_array((np.ones(len(x)), (patients, np.arange(len(x)))))
    weights = _weights(clusters, draws, seed)
    flat = FLAT * np.ptp(x)
    results = np.full((3, len(at), y.shape[1]), np.nan)
    for column, values in enumerate(y.T):
        known = np.isfinite(values)
        if not known.any():
            continue
        weight, value = kernel * known[:, None], np.where(known, values, 0.0)[:, None]
        products = (weight, weight * offset, weight * offset**2, weight * value, weight * offset * value)
        sums = np.stack([indicator @ product for product in products], axis=-1)  # (patients, G, 5)
        drawn = _fit((weights @ sums.reshape(len(sums), -1)).reshape(draws, len(at), 5), flat)
        interval = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        found = [_fit(sums.sum(axis=0), flat), *interval]
        results[:, :, column] = np.clip(found, values[known].min(), values[known].max())
    return results


def _neighbours(x: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every x to every point its distance with sign, and its tricube weight: two arrays (n, G)."""
    offset = x[:, None] - at
    distance = np.abs(offset)
    nearest = math.ceil(SPAN * len(x))
    reach = np.partition(distance, nearest - 1, axis=0)[nearest - 1]
    # a hair further, so that some weight is left where all neighbours are equally far, or have the same area
    reach = np.maximum(reach * (1 + 1e-6), np.finfo(float).tiny)
    return offset, (1 - np.minimum(distance / reach, 1) ** 3) ** 3


def _weights(clusters: pd.DataFrame, draws: int, seed: int) -> np.ndarray:
    """(draws, patients) how often each patient is drawn, patients in the order of data set and name."""
    generator = np.random.default_rng(seed)
    patients = clusters.drop_duplicates()["dataset"].value_counts().sort_index()
    drawn = [generator.multinomial(count, np.full(count, 1 / count), size=draws) for count in patients]
    return np.concatenate(drawn, axis=1).astype(np.float64)


def _fit(sums: np.ndarray, flat: float) -> np.ndarray:
    """(..., 5) sums of w, wx, wxx, wy, wxy around a point -> (...) the local line there; NaN where no weight is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x, xx, y, xy = np.moveaxis(sums[..., 1:] / sums[..., :1], -1, 0)
        variance = xx - x**2
        slope = np.where(variance > flat**2, (xy - x * y) / variance, 0.0)
        return y - slope * x


def _masks(scores: Scores) -> tuple[pd.DataFrame, np.ndarray]:
    """The masks with a target, (M,) cases, and their Dice over all prompts, (M, R)."""
    there = scores.cases["area_pct"].to_numpy() > 0
    cases, dice = scores.cases[there], scores.dice[there]
    mask = cases.groupby(["dataset", "object", "image_id"], sort=False).ngroup().to_numpy()
    if mask.max(initial=-1) + 1 < len(cases):
        dice = pd.DataFrame(dice).groupby(mask).mean().to_numpy()
    return cases[~cases.duplicated(["dataset", "object", "image_id"])].reset_index(drop=True), dice


def curve_table(curves: pd.DataFrame, phantom: bool) -> Table:
    """The points of the curves; a file of numbers, too long to be read in a page."""
    columns = (
        Column("part", "Part"),
        Column("area_pct", "Object area, %", 4),
        Column("method", "Method"),
        *(Column(name, name.capitalize(), 2) for name in ("dice", "low", "high")),
    )
    caption = "LOWESS of Dice in percent over the logarithm of the object's area, with its 95% interval over patients."
    return Table("dice_vs_area", "Dice against object area", caption, curves, columns, phantom)


def curve_figure(curves: pd.DataFrame, grid: Grid, phantom: bool) -> Drawing | None:
    """The curves with their bands, of all masks and in small panels by data set, or by modality where there are
    more than six data sets; None without a curve.
    """
    from matplotlib.figure import Figure

    parts = list(dict.fromkeys(curves["part"]))
    if not parts:
        return None
    datasets = [part for part in parts if part in grid.datasets]
    others = datasets if len(datasets) <= PANELS else [p for p in parts if p not in (*datasets, ALL_MASKS)]
    across = min(3, max(1, len(others)))
    lines = [others[start : start + across] for start in range(0, len(others), across)]
    rows = [[ALL_MASKS] * across] * 2 + [[*line, *["."] * (across - len(line))] for line in lines]
    figure = Figure(figsize=(7.6, 4.6 + 2.3 * len(lines)), layout="constrained")
    panels = figure.subplot_mosaic(rows, sharey=True)
    places = {row.label: place for place, row in enumerate(grid.rows)}
    for part, axes in panels.items():
        for method, line in curves[curves["part"] == part].groupby("method", sort=False):
            color = style_of(places[method])["color"]
            style = {"linestyle": LINES[places[method] // len(COLORS) % len(LINES)]}
            style |= {"marker": "o"} if len(line) == 1 else {}
            axes.plot(line["area_pct"], line["dice"], color=color, linewidth=1.5, label=method, **style)
            axes.fill_between(line["area_pct"], line["low"], line["high"], color=color, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_ylim(0, 100)
        axes.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
        axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if part != ALL_MASKS:
            axes.set_title(part, fontsize=9, parse_math=False)
    panels[ALL_MASKS].set_xlabel("object area, % of the image (log)")
    panels[ALL_MASKS].set_ylabel("Dice, %")
    legend_below(figure, *panels[ALL_MASKS].get_legend_handles_labels())
    title = "Dice against object area: local regression, 95% band over patients"
    figure.suptitle(f"{title} (phantom data)" if phantom else title, fontsize=10)
    return drawing_of(figure)
