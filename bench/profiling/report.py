"""What was measured as a frame, tables, a figure, and against the bars. Imports no torch."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from rich.table import Table

    from bench.profiling.measure import Outcome, Row

COLUMNS = (
    *("scope", "method", "path", "image_size", "tokens", "queries", "sampling", "prompts", "phase", "dtype", "threads"),
    *("gflop", "seconds", "peak_mib", "speedup"),
)
MEASURED = ("gflop", "seconds", "peak_mib")
CASE = [column for column in COLUMNS if column not in ("path", "speedup", *MEASURED)]
FORMS = ("projected", "absorbed", "gathered")  # of the attention; the terminal shows what the rule chose


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """A row per measurement with COLUMNS; speedup: seconds of the plain path of the same case over its own."""
    frame = pd.DataFrame([vars(row) for row in rows], columns=[c for c in COLUMNS if c != "speedup"])
    frame = frame.astype({"image_size": "Int64", "queries": "Int64", "sampling": "float64", "peak_mib": "float64"})
    plain = frame[frame["path"] == "plain"].groupby(CASE, dropna=False)["seconds"].first().rename("plain")
    frame = frame.merge(plain.reset_index(), on=CASE, how="left")
    frame["speedup"] = frame["plain"] / frame["seconds"]
    return frame[list(COLUMNS)]


def csv_of(frame: pd.DataFrame) -> str:
    """The frame as CSV, five significant digits."""
    return frame.to_csv(index=False, float_format="%.5g", lineterminator="\n")


def scope_table(frame: pd.DataFrame, scope: str) -> Table:
    """A scope's rows in short, each with the plain path of its case; what is the same in all of them is in the title.

    Of the attention's forms only the one that the rule chose; of several samplings 10% and 1%, of several numbers of
    threads the largest.
    """
    shown = frame[(frame["scope"] == scope) & ~frame["path"].isin(FORMS)]
    shown = shown[shown["sampling"].isna() | shown["sampling"].isin((0.1, 0.01))]
    shown = shown[shown["threads"] == shown["threads"].max()]
    shown = shown.dropna(axis="columns", how="all")
    plain = {_case(row): row for row in shown.itertuples() if row.path == "plain"}
    beside = {_case(row) for row in shown.itertuples() if row.path != "plain"}
    labels = [column for column in COLUMNS if column in shown and column not in ("scope", *MEASURED, "speedup")]
    same = [column for column in labels if shown[column].nunique(dropna=False) == 1]
    labels = [column for column in labels if column not in same]
    rows = []
    for row in shown.itertuples():
        if row.path == "plain" and _case(row) in beside:
            continue
        against = plain.get(_case(row))
        cells = [_label(column, getattr(row, column)) for column in labels]
        for column in MEASURED:
            cells += [_number(getattr(row, column, math.nan)), _number(getattr(against, column, math.nan))]
        rows.append([*cells, _ratio(row.speedup)])
    title = ", ".join([scope, *(f"{column} {_label(column, shown[column].iloc[0])}" for column in same)])
    numbers = ["GFLOP", "plain", "seconds", "plain", "MiB", "plain", "speedup"]
    return _rich(title, labels, numbers, rows)


def _label(column: str, value) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.0%}" if column == "sampling" else str(value)


def _case(row) -> tuple:
    values = (getattr(row, column, None) for column in CASE)
    return tuple(None if pd.isna(value) else value for value in values)


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _ratio(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.2g} x" if value < 10 else f"{value:.0f} x"


@dataclass(frozen=True)
class Bar:
    """`column` of the row that differs in `against`, over that of the rows of `case`, has to be `at_least`.

    `by`: the column that tells several rows apart; one of several `by` prompts is enough, of others all must reach it.
    """

    work: str
    at_least: float
    case: dict
    against: dict
    column: str = "seconds"
    by: str = "threads"


LAYER = {"scope": "attention", "method": "boltzformer", "path": "auto", "tokens": 128 * 128, "queries": 10}
LAYER |= {"dtype": "fp32", "sampling": 0.1, "phase": "forward"}
DECODER = {"scope": "decoder", "path": "fast", "sampling": 0.1, "dtype": "fp32", "phase": "forward"}
MODEL = {"scope": "model", "method": "boltzformer", "path": "fast", "queries": 101, "prompts": 1}
MODEL |= {"dtype": "fp32", "phase": "forward"}
HARNESS = {"scope": "harness", "method": "boltzformer", "path": "together", "dtype": "fp32"}
TRAINING = {"phase": "forward+backward"}
PLAIN = {"path": "plain"}
LARGEST = 1024  # px, of the bars on decoders and models

BARS = (
    Bar("cross-attention layer, 128 x 128 tokens, 10 queries, 10%: FLOPs", 50, LAYER, PLAIN, "gflop"),
    Bar("the same, forward", 15, LAYER, PLAIN),
    Bar("the same, forward, concentrated: 1% of the tokens kept", 40, LAYER | {"sampling": 0.01}, PLAIN),
    Bar("the same, 10%, forward + backward", 6, LAYER | TRAINING, PLAIN),
    *(
        Bar(f"decoder{what}, {queries} queries, {phase}", at_least, DECODER | case | {"queries": queries}, PLAIN)
        for what, method in ((" and PiGMA", "boltzformer"), (" alone (all candidate masks)", "boltzformer-candidates"))
        for queries, phase, at_least, case in (
            (10, "forward", 5.5, {"method": method}),
            (10, "forward + backward", 4, {"method": method} | TRAINING),
            (101, "forward", 4, {"method": method}),
            (101, "forward + backward", 2.2, {"method": method} | TRAINING),
        )
    ),
    Bar("whole model, 101 queries, one prompt, fp32", 1.4, MODEL, PLAIN),
    Bar("whole model, 101 queries, one prompt, bf16 against plain fp32", 3, MODEL | {"dtype": "bf16"},
        PLAIN | {"dtype": "fp32"}),
    Bar("whole model, 101 queries, 15 prompts on one image against 15 plain calls, fp32", 8, MODEL | {"prompts": 15},
        PLAIN),
    Bar("laptop training step, all prompts of an image together against one per image, fp32", 2, HARNESS,
        {"path": "one prompt per image"}, by="prompts"),
)  # fmt: skip


def bar_rows(frame: pd.DataFrame, outcomes: Sequence[Outcome] = ()) -> list[list[str]]:
    """[work, at least, measured, reached] of every bar that the rows speak of, in the order of BARS.

    Decoders and models at the largest size that was measured, which is told where it is not that of the bar.
    """
    rows = []
    for bar in BARS:
        scope = frame[frame["scope"] == bar.case["scope"]]
        sizes = scope["image_size"].dropna()
        size = None if sizes.empty else int(sizes.max())
        ratios = _ratios(scope if size is None else scope[scope["image_size"] == size], bar)
        if not ratios:
            continue
        smaller = bar.case["scope"] in ("decoder", "model") and size != LARGEST
        work = bar.work + (f" (at {size} px; the bar is for {LARGEST})" if smaller else "")
        passed = [value >= bar.at_least for value in ratios.values()]
        reached = _yes(any(passed) if bar.by == "prompts" else all(passed))
        several = len(set(map(_ratio, ratios.values()))) > 1 or bar.by == "prompts"
        measured = [
            f"{_ratio(value)} ({key} {bar.by[:-1] if key == 1 else bar.by})" if several else _ratio(value)
            for key, value in ratios.items()
        ]
        rows.append([work, _ratio(bar.at_least), ", ".join(dict.fromkeys(measured)), "-" if smaller else reached])
    largest = max((outcome.image_size or 0 for outcome in outcomes), default=0)
    for outcome in outcomes:
        if outcome.image_size in (largest, None):
            rows.append([outcome.work, outcome.bar, outcome.measured, _yes(outcome.reached)])
    return rows


def _yes(reached: bool) -> str:
    return "yes" if reached else "NO"


def _ratios(frame: pd.DataFrame, bar: Bar) -> dict[int, float]:
    """Value of `by` -> plain over fast."""
    ratios = {}
    for _, row in _select(frame, bar.case).iterrows():
        case = bar.case | {"threads": row["threads"], "queries": row["queries"], "prompts": row["prompts"]}
        against = _select(frame, case | bar.against)
        if len(against):
            ratios[int(row[bar.by])] = float(against[bar.column].iloc[0] / row[bar.column])
    return ratios


def _select(frame: pd.DataFrame, case: dict) -> pd.DataFrame:
    for column, value in case.items():
        frame = frame[frame[column] == value]
    return frame


def bars_table(rows: list[list[str]]) -> Table:
    """The rows of `bar_rows` for the terminal."""
    styled = [[*row[:3], f"[red]{row[3]}[/red]" if row[3] == "NO" else row[3]] for row in rows]
    return _rich("bars: medians of this run, plain over fast", ["work"], ["at least", "measured", "reached"], styled)


def _rich(title: str, left: Sequence[str], right: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    built = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for header in left:
        built.add_column(header)
    for header in right:
        built.add_column(header, justify="right", style="dim" if header == "plain" else None)
    for row in rows:
        built.add_row(*row)
    return built


def figure(frame: pd.DataFrame) -> bytes:
    """PNG: GFLOP and seconds against the number of tokens, log-log, a line per path; forward, fp32, 10% sampling.

    Of the attention where it was measured, with as few queries as were; else of the decoders or the models, with as
    many.
    """
    from matplotlib.figure import Figure

    from reports.drawing import COLORS, MARKERS, legend_below

    scope = next(s for s in ("attention", "decoder", "model", "harness") if (frame["scope"] == s).any())
    shown = frame[(frame["scope"] == scope) & (frame["dtype"] == "fp32") & (frame["prompts"] == 1)]
    shown = shown[shown["threads"] == shown["threads"].max()]
    if scope != "harness":
        shown = shown[shown["phase"] == "forward"]
    queries = shown["queries"].min() if scope == "attention" else shown["queries"].max()
    shown = shown[shown["queries"].isna() | (shown["queries"] == queries)]
    concentrated = shown[(shown["sampling"] == 0.01) & (shown["path"] == "auto")]
    shown = shown[shown["sampling"].isna() | (shown["sampling"] == 0.1)]
    if scope == "attention":
        shown = shown[(shown["method"] == "boltzformer") & (shown["path"] != "auto")]
    lines = {
        (f"{method}, " if scope != "attention" else "") + path: rows
        for (method, path), rows in shown.groupby(["method", "path"], sort=False)
    }
    if len(concentrated):
        lines["chosen, 1% of the tokens kept"] = concentrated

    drawing = Figure(figsize=(9.6, 4.6), layout="constrained")
    panels = drawing.subplots(1, 2)
    for axes, column, label in zip(panels, ("gflop", "seconds"), ("GFLOP, counted", "seconds, median"), strict=True):
        for place, (name, rows) in enumerate(lines.items()):
            rows = rows.sort_values("tokens")
            style = {"color": COLORS[place % len(COLORS)], "marker": MARKERS[place % len(MARKERS)], "markersize": 5}
            width = 2.2 if name.endswith("plain") else 1.3
            axes.plot(rows["tokens"], rows[column], label=name, linewidth=width, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted(shown["tokens"].unique()))
        axes.xaxis.set_major_formatter(lambda tick, _: f"{math.isqrt(int(tick))}²")
        axes.set_xlabel("tokens of the (finest) grid")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    what = {"attention": "One cross-attention layer", "decoder": "Decoders", "model": "Whole models"}
    drawing.suptitle(f"{what.get(scope, 'Training step')}, {queries} queries, sampling 10%, fp32", fontsize=10)
    legend_below(drawing, *panels[0].get_legend_handles_labels())
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
