"""The figures: Dice against size, training curves, and the masks of all methods on the same cases (Fig. 9)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bench.data.dataset import load_image, load_mask
from bench.errors import UserError
from bench.records import decode_mask
from reports.aggregate import Scores, record_dice
from reports.drawing import COLORS, Drawing, drawing_of, legend_below, style_of, text_width
from reports.grid import CASE, Grid
from reports.load import Run, SuiteResults, load_predictions
from reports.significance import Ranking
from reports.statistics import Bootstrap
from reports.strata import BINS, GROUPS, members

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUTH_COLOR, MASK_COLOR = "#ff2020", (0, 200, 83)
LINE_OF_RANKS = 3.0  # inches between the names on both sides
TITLE = 24  # characters over a panel of the overlays
ABREAST = 10  # methods beside each other there
SEVERAL = re.compile(r"\d+ [a-z -]+ x (\d+) iterations")  # of nnU-Net's budget: models trained one after the other


def dice_vs_size(scores: Scores, grid: Grid, bootstrap: Bootstrap, phantom: bool) -> Drawing:
    """Dice against object area on a log axis: the seven bins of by_size, with their standard errors.

    `bootstrap` has the groups of `strata.GROUPS`; a point stands at the geometric mean area of its bin's
    masks.
    """
    from matplotlib.figure import Figure

    area = scores.cases["area_pct"].to_numpy()
    inside = members(area, BINS) & (area > 0)[:, None]
    logs = np.log(np.where(area > 0, area, 1.0))
    center = np.array([np.exp(logs[column].mean()) if column.any() else np.nan for column in inside.T])
    first = GROUPS.index(BINS[0])
    value = bootstrap.estimate[first : first + len(BINS)]
    error = bootstrap.standard_error[first : first + len(BINS)]
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    shown = [place for place in range(len(grid.rows)) if np.isfinite(value[:, place]).any()]
    for order, place in enumerate(shown):
        shift = 1.03 ** (order - (len(shown) - 1) / 2)  # so that the error bars stand side by side
        seen = np.isfinite(value[:, place])
        axes.errorbar(
            center[seen] * shift, value[seen, place], error[seen, place],
            label=grid.rows[place].label, capsize=2, linewidth=1.3, markersize=5, **style_of(place),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.set_xlabel("object area, % of the image (log)")
    axes.set_ylabel("Dice, %")
    axes.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
    _finish(figure, [axes], "Dice against object size, mean and standard error per size bin", phantom, bool(shown))
    return drawing_of(figure)


def curves(results: SuiteResults, phantom: bool) -> Drawing:
    """Train loss and validation Dice over the training, one line per run (the seeds of a method in one colour, each
    dashed in its own way), from history.jsonl.

    Across: the share of the run's steps, so that runs of very different numbers of steps can be read side by side; of
    nnU-Net's experts, each of which begins anew, the share of one's, and their mean (on patches; its loss is its own).
    Points of equal step are averaged: a run resumed after a kill repeats some. Train loss is a running mean
    over a fiftieth of its points, drawn over the raw values, on a scale of its own: methods minimise different
    functions. `val_dice` is a fraction in the history and percent here.
    """
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys((run.method, run.backbone) for run in results.runs))
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    named = set()
    for run in results.runs:
        place = rows.index((run.method, run.backbone))
        style = {"color": COLORS[place % len(COLORS)], "linestyle": ("-", "--", ":", "-.")[run.seed % 4]}
        loss, dice = _curve(run, "train_loss"), 100 * _curve(run, "val_dice")
        if len(loss) or len(dice):
            label = "_" if place in named else results.label(run.method, run.backbone)  # "_": not in the legend
            named.add(place)
        if len(loss):
            mean = loss.rolling(max(1, len(loss) // 50), min_periods=1).mean()
            loss, mean = (100 * (values - mean.min()) / (np.ptp(mean) or 1.0) for values in (loss, mean))
            panels[0].plot(loss.index, loss, alpha=0.15, linewidth=0.8, color=style["color"])
            panels[0].plot(mean.index, mean, label=label, linewidth=1.4, **style)
        if len(dice):
            panels[1].plot(
                dice.index, dice, label=label, linewidth=1.4, markersize=3.5,
                marker=style_of(place)["marker"], **style,
            )  # fmt: skip
    panels[0].set_ylabel("train loss, lowest 0, highest 100")
    panels[1].set_ylabel("validation Dice, %")
    for axes in panels:
        axes.set_xlabel("share of the run's training, %")
    _finish(figure, list(panels), "Training curves", phantom, bool(named))
    return drawing_of(figure)


def critical_difference(ranking: Ranking, labels: Sequence[str], phantom: bool) -> Drawing:
    """Demsar's critical-difference diagram: mean ranks on a line, a bar over rows that are not told apart."""
    from matplotlib.figure import Figure
    from scikit_posthocs import critical_difference_diagram

    names = [labels[place] for place in ranking.places]
    pairs = pd.DataFrame(ranking.pairs, index=names, columns=names)
    width = max(7.2, LINE_OF_RANKS + 2 * text_width([f"{name} (0.0)" for name in names]))
    figure = Figure(figsize=(width, 1.2 + 0.28 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    ranks = pd.Series(ranking.ranks, index=names)
    black, plain = {name: "black" for name in names}, {"parse_math": False}
    drawn = critical_difference_diagram(
        ranks, pairs, ax=axes, color_palette=black, label_props=plain,
        label_fmt_left="{label} ({rank:.1f})", label_fmt_right="({rank:.1f}) {label}",
    )  # fmt: skip
    for (bar,) in drawn["crossbars"]:
        bar.set_xdata(np.sort(bar.get_xdata()))  # drawn in the order of a set of names: another in each process
    axes.set_title("Mean rank over patients" + (" (phantom data)" if phantom else ""), fontsize=10)
    return drawing_of(figure)


def choose_cases(dice: np.ndarray, cases: pd.DataFrame) -> dict[str, int]:
    """Which rows of `cases` are drawn, by what they are: "best", "median", "worst" and "missed".

    dice: (C, R) of the methods compared. Cases are ordered by their mean over the methods, equal ones by size and
    name, so that no method has a say of its own. Missed: all methods have Dice 0; of several the one of median size.
    The other three are of the cases that some method found.
    """
    known = np.isfinite(dice).all(axis=1)
    mean = pd.Series(dice.mean(axis=1), cases.index)[known]
    ordered = cases[known].assign(mean=mean).sort_values(["mean", "area_pct", *CASE])
    found, missed = (ordered.index[flags] for flags in (ordered["mean"] > 0, ordered["mean"] == 0))
    chosen = {}
    if len(found):
        chosen = {"best": found[-1], "median": found[(len(found) - 1) // 2], "worst": found[0]}
    if len(missed):
        chosen["missed"] = missed[(len(missed) - 1) // 2]
    # of few cases one may be several; it is drawn once
    first = {place: what for what, place in reversed(chosen.items())}
    return {what: int(place) for what, place in chosen.items() if first[place] == what}


def overlays(results: SuiteResults, scores: Scores, grid: Grid) -> tuple[Drawing | None, list[str]]:
    """All methods on the same cases (`choose_cases`), as in Fig. 9, and notes on what could not be drawn.

    One line per case, or several of equal length where there are more than `ABREAST` methods. First column: the whole
    image, truth outlined red, and a white frame around the part that the other columns show; then per method its mask
    in green and the truth outlined red, titled with the Dice of that mask (the row's first seed). No drawing if none of
    the images is there any more.
    """
    from matplotlib.figure import Figure

    firsts = [results.runs_of(row.method, row.backbone)[0] for row in grid.rows]
    places = [place for place, run in enumerate(firsts) if not run.published]
    rows, runs = [grid.rows[place] for place in places], [firsts[place] for place in places]
    compared = [place for place in places if scores.complete[place]]
    if not compared:
        return None, []
    kinds = choose_cases(scores.dice[:, compared], scores.cases)
    chosen = scores.cases.loc[list(kinds.values())]
    predictions = [masks_of(run, chosen) for run in runs]
    dice = _dice_of(results.records[results.records["image_id"].isin(chosen["image_id"])])
    panels, notes = [], []
    for kind, case in zip(kinds, chosen.itertuples(), strict=True):
        files = next((found[case.Index] for found in predictions if case.Index in found), None)
        if files is None:
            notes.append(f"overlays: no run kept its mask of {case.dataset}/{case.image_id}, {case.object}")
            continue
        try:
            image, truth = read_case(results.data[case.dataset], files, (case.height, case.width))
        except (UserError, KeyError, ValueError) as error:
            notes.append(f"overlays: {case.dataset}/{case.image_id}, {case.object} is not drawn: {error}")
            continue
        panels.append((kind, case, image, truth))
    if not panels:
        return None, notes
    lines = -(-len(runs) // ABREAST)
    abreast = -(-len(runs) // lines)
    figure = Figure(figsize=(1.75 * (1 + abreast), 2.05 * lines * len(panels) + 0.5), layout="constrained")
    grid_axes = figure.subplots(lines * len(panels), 1 + abreast, squeeze=False)
    for axes in grid_axes.flat:
        axes.set_axis_off()  # also where nothing is drawn
    for at, (kind, case, image, truth) in enumerate(panels):
        own = grid_axes[lines * at : lines * (at + 1)]
        box, whole = crop_box(truth), own[0, 0]
        _show(whole, image, truth, None)
        whole.plot(*_frame(box), color="white", linewidth=0.8)
        whole.set_title(f"{kind}: {case.dataset}\n{case.object}, {case.area_pct:.2g}%", fontsize=7, parse_math=False)
        for axes, run, row, found in zip(own[:, 1:].flat, runs, rows, predictions, strict=False):
            stored = found.get(case.Index)
            mask = None
            if stored is None:
                title = "no mask" if run.state == "finished" else row.gap
            else:
                mask = decode_mask(stored["runs"], stored["height"], stored["width"])
                number = dice.get((run.method, run.backbone, run.seed, *(getattr(case, name) for name in CASE)))
                title = "Dice -" if number is None or np.isnan(number) else f"Dice {number:.1f}"
            _show(axes, image, truth, mask, box)
            name = textwrap.fill(row.label, TITLE)
            axes.set_title(f"{name}\n{title}", fontsize=7, parse_math=False)
    title = "Masks in green, truth outlined red; white frame: the part shown beside"
    figure.suptitle(f"{title} (phantom data)" if results.phantom else title, fontsize=9)
    return drawing_of(figure), notes


def crop_box(truth: np.ndarray) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of a square around a (height, width) bool mask, inside the image.

    Three times the object's longer side, but at least an eighth and at most the whole of the image's shorter
    side.
    """
    height, width = truth.shape
    ys, xs = np.nonzero(truth)
    if not len(ys):
        return 0, 0, height, width
    longest = max(np.ptp(ys), np.ptp(xs)) + 1
    side = int(np.clip(3 * longest, min(height, width) // 8, min(height, width)))
    top = int(np.clip((ys.min() + ys.max() + 1 - side) // 2, 0, height - side))
    left = int(np.clip((xs.min() + xs.max() + 1 - side) // 2, 0, width - side))
    return top, left, top + side, left + side


def masks_of(run: Run, chosen: pd.DataFrame) -> dict[int, dict]:
    """The stored predictions of a run for the chosen cases, by the case's index."""
    stored = load_predictions(run, chosen["image_id"])
    if stored.empty:
        return {}
    found = {(line["dataset"], line["image_id"], line["object"]): line for line in stored.to_dict("records")}
    keys = zip(chosen["dataset"], chosen["image_id"], chosen["object"], strict=True)
    return {index: found[key] for index, key in zip(chosen.index, keys, strict=True) if key in found}


def _dice_of(records: pd.DataFrame) -> dict[tuple, float]:
    values = record_dice(records)
    keys = zip(*(records[name] for name in ["method", "backbone", "seed", *CASE]), strict=True)
    return dict(zip(keys, values, strict=True))


def read_case(folder: Path, files: dict, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Image (height, width, 3) uint8 and truth (height, width) bool."""
    image, truth = load_image(folder / files["image_file"]), load_mask(folder / files["mask_file"])
    if image.shape[:2] != shape or truth.shape != shape:
        raise ValueError(f"{files['image_file']} or its mask is no longer {shape[0]} x {shape[1]} px")
    return image, truth


def _show(axes: Axes, image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None, box=None) -> None:
    """Draws one panel; contours are drawn on the cropped part only, which is what takes the time."""
    top, left, bottom, right = box or (0, 0, *truth.shape)
    part = (slice(top, bottom), slice(left, right))
    extent = (left - 0.5, right - 0.5, bottom - 0.5, top - 0.5)
    picture = image[part].astype(np.float32)
    if mask is not None:
        inside = mask[part]
        picture[inside] = 0.5 * picture[inside] + 0.5 * np.array(MASK_COLOR, dtype=np.float32)
    axes.imshow(picture.astype(np.uint8), extent=extent, interpolation="nearest")
    if truth[part].any():
        padded = np.pad(truth[part], 1).astype(np.float32)  # closes the outline of an object that touches the edge
        xs, ys = np.arange(left - 1, right + 1), np.arange(top - 1, bottom + 1)
        axes.contour(xs, ys, padded, [0.5], colors=TRUTH_COLOR, linewidths=0.9)
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])


def _frame(box: tuple[int, int, int, int]) -> tuple[list[float], list[float]]:
    top, left, bottom, right = (edge - 0.5 for edge in box)
    return [left, right, right, left, left], [top, top, bottom, bottom, top]


def _curve(run: Run, name: str) -> pd.Series:
    """A column of the history over the share of the training in percent; of several models their mean."""
    if name not in run.history:
        return pd.Series(dtype="float64")
    points = run.history[["step", name]].apply(pd.to_numeric, errors="coerce").dropna()
    several = SEVERAL.match(run.fit.get("budget") or "")
    last = int(several[1]) if several else max(run.history["step"].max(), 1)
    if several:
        points["step"] = (points["step"] - 1) % last + 1
    curve = points.groupby("step")[name].mean()
    curve.index = 100 * curve.index / last
    return curve


def _finish(figure: Figure, panels: list[Axes], title: str, phantom: bool, drawn: bool) -> None:
    figure.suptitle(f"{title} (phantom data)" if phantom else title, fontsize=10)
    for axes in panels:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles = {}
    for axes in panels:
        lines, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    if handles:
        legend_below(figure, list(handles.values()), list(handles))
    if not drawn:
        panels[0].text(0.5, 0.5, "nothing to draw yet", ha="center", transform=panels[0].transAxes)
