"""The figures of a report with their titles and captions, in the order of the page."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports import figures
from reports.aggregate import Scores
from reports.cost import cost_figure
from reports.curve import CURVE_CAPTION, curve_figure
from reports.grid import Grid
from reports.html import Picture
from reports.load import SuiteResults
from reports.sampling import sampling_figure, suite_rows
from reports.significance import Ranking
from reports.statistics import Bootstrap
from reports.tables import Table


def draw(
    results: SuiteResults,
    grid: Grid,
    scores: Scores,
    bootstrap: Bootstrap,
    order: Ranking,
    curves: pd.DataFrame,
    costs: Table,
) -> tuple[list[Picture], list[str]]:
    """The figures, and notes on what could not be drawn; `curves` are those of `dice_vs_area`, `costs` is the table."""
    pictures = [
        Picture(
            "dice_vs_size",
            "Dice against object size",
            "The size bins and the weighting of the table by size; a point stands at its bin's geometric mean area.",
            figures.dice_vs_size(scores, grid, bootstrap, results.phantom),
        ),
    ]
    if (drawing := cost_figure(costs, grid, bootstrap)) is not None:
        caption = "Bars: standard error over patients. The dashed line joins the methods that no other beats in both."
        pictures.append(Picture("dice_vs_cost", "Dice against cost", caption, drawing))
    if (drawing := curve_figure(curves, grid, results.phantom)) is not None:
        pictures.append(Picture("dice_vs_area", "Dice against object area", CURVE_CAPTION, drawing))
    if any(run.origin is None for run in results.runs):
        caption = (
            "Train loss (running mean over the raw values) and validation Dice. A step means what the "
            "method's budget says, and losses of different methods are not the same function: each stands on its own "
            "scale. Of nnU-Net's experts the mean, of Dice on patches. "
            "Seeds of a method: solid, dashed, dotted."
        )
        pictures.append(Picture("curves", "Training curves", caption, figures.curves(results, results.phantom)))
    if np.isfinite(order.p):
        labels = [row.label for row in grid.rows]
        caption = (
            f"Mean ranks of the patients' mean Dice ({order.patients:,} patients), best on the left. Methods on one "
            "bar are not told apart by Nemenyi's test at the 5% level."
        )
        drawing = figures.critical_difference(order, labels, results.phantom)
        pictures.append(Picture("critical_difference", "Critical difference", caption, drawing))
    drawing, notes = figures.overlays(results, scores, grid)
    if drawing is not None:
        caption = (
            "As Fig. 9 of the paper: all methods on the cases with the best, the median and the worst mean Dice over "
            "the methods, and one that all missed (of several that of median size); no method has a say of its own. "
            "Truth outlined red, masks green, Dice of the whole image above; the first column shows the whole image."
        )
        pictures.append(Picture("overlays", "Masks of all methods", caption, drawing))
    rows, unseen = suite_rows(results)
    if rows:
        title = "Dark: no query attends there; the brighter, the more queries do; truth outlined red"
        caption = (
            "The patches that each decoder layer attends to, as in Fig. 4 to 8 of the paper, on a small, a medium and "
            "a large test object chosen by the truth alone: the middle of each third of all objects by area. Kept: the "
            "mean share of the tokens that one query attends to, and the share that any query does."
        )
        drawing = sampling_figure(rows, f"{title} (phantom data)" if results.phantom else title)
        pictures.append(Picture("sampling", "Sampled patches", caption, drawing))
    return pictures, notes + unseen
