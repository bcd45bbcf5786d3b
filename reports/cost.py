"""What each method costs, as a table and against its Dice."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.fairness import COSTS
from reports.drawing import Drawing, drawing_of, legend_below, style_of
from reports.fairness import NONE
from reports.grid import Grid
from reports.load import SuiteResults
from reports.statistics import Bootstrap
from reports.strata import ALL, GROUPS
from reports.tables import Column, Table

DRAWN = "ms_1_prompt"  # the cost on the figure's axis


def cost_table(results: SuiteResults, grid: Grid) -> Table:
    """What each method costs, means over its seeds."""
    frame = pd.DataFrame({"method": [row.label for row in grid.rows]})
    fits = [[run.fit for run in results.runs_of(row.method, row.backbone)] for row in grid.rows]
    for key in ("parameters", "train_seconds"):
        frame[key] = [_mean([fit.get(key) for fit in row]) for row in fits]
    for key in COSTS:
        frame[key] = [_mean([(fit.get("cost") or {}).get(key) for fit in row]) for row in fits]
    columns = (
        Column("method", "Method"),
        Column("parameters", "Parameters", 0),
        Column("train_seconds", "Training, s", 0),
        *(Column(key, text, 1) for key, text in COSTS.items()),
    )
    caption = (
        "What each method costs, measured at the end of its training on that machine beside whatever else ran there. "
        "GFLOP and ms per prompt: one image with one prompt, and with 15 prompts together (divided by 15), from the "
        "image to logits, prompts encoded before. Parameters: trainable. Memory: resident, without mapped files."
    )
    return Table("cost", "Cost", caption, frame, columns, results.phantom)


def cost_figure(table: Table, grid: Grid, bootstrap: Bootstrap) -> Drawing | None:
    """The average Dice against milliseconds for one prompt, with the Pareto front; None where no time is known.

    On the front are the methods that no other beats in both.
    """
    from matplotlib.figure import Figure

    cost = pd.to_numeric(table.frame[DRAWN], errors="coerce").to_numpy(dtype=np.float64)
    dice = bootstrap.estimate[GROUPS.index(ALL)]
    error = bootstrap.standard_error[GROUPS.index(ALL)]
    known = np.flatnonzero(np.isfinite(cost) & np.isfinite(dice) & (cost > 0))
    if not len(known):
        return None
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    order = known[np.argsort(cost[known])]
    front = order[pareto_front(cost[order], dice[order])]
    axes.plot(cost[front], dice[front], color="0.6", linewidth=1, linestyle="--", zorder=1, label="Pareto front")
    for place in known:
        label = grid.rows[place].label
        axes.errorbar(cost[place], dice[place], error[place], capsize=2, linestyle="", label=label, **style_of(place))
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds per prompt, one prompt on an image (log)")
    axes.set_ylabel("average Dice, %")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Dice against cost" + (" (phantom data)" if table.phantom else ""), fontsize=10)
    legend_below(figure, *axes.get_legend_handles_labels())
    return drawing_of(figure)


def pareto_front(cost: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(n,) bool: which points no other beats, at most as dear and at least as good, and better in one."""
    cheaper, better = cost[:, None] <= cost, score[:, None] >= score
    strictly = (cost[:, None] < cost) | (score[:, None] > score)
    return ~(cheaper & better & strictly).any(axis=0)


def _mean(values: list[float | None]) -> float | str:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else NONE
