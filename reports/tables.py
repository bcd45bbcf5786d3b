"""One description of a table, and its forms: Markdown, CSV, HTML and the terminal; LaTeX is in `reports.latex`."""

from __future__ import annotations

import html
import io
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import rich.console

MISSING = "-"
GAP = 2  # characters between two columns in a terminal
FOLDED = 24  # characters; longer texts are folded in a terminal, if there is no place for more


@dataclass(frozen=True)
class Column:
    """A column of the frame and how it is shown.

    digits: decimals of a number, None for text; beside: a further column of the frame that is shown in
    parentheses after the value (a standard error, a median) and is a column of its own in the CSV; narrow: shown where
    width is scarce too, in the terminal and in LaTeX; least: a smaller number is shown as "<least" (a p value); heat:
    percentages whose cells are tinted in HTML.
    """

    key: str
    header: str
    digits: int | None = None
    beside: str | None = None
    narrow: bool = True
    least: float | None = None
    heat: bool = False


@dataclass(frozen=True)
class Table:
    """What a table says. Frame values are numbers, text, or NaN; a gap is text ("-", "failed") among numbers.

    bold, underline: (row position, column key) of the cells that stand out; phantom: the numbers come
    from generated data, which every form then says.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame
    columns: tuple[Column, ...]
    phantom: bool = False
    bold: frozenset[tuple[int, str]] = frozenset()
    underline: frozenset[tuple[int, str]] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def full_title(self) -> str:
        """The title, marked where the data are generated."""
        return f"{self.title} (phantom data)" if self.phantom else self.title

    @property
    def full_caption(self) -> str:
        """The caption, marked where the data are generated."""
        return f"Generated phantom data, not patients. {self.caption}" if self.phantom else self.caption


@dataclass(frozen=True)
class Cell:
    """One cell as it is shown, before any escaping."""

    text: str
    bold: bool = False
    underline: bool = False


def highlight(table: Table, along: str, keys: list[str], groups: list[str] | None = None) -> Table:
    """Marks the highest of each column (`along="column"`) or row, as it is shown, ties included, in bold.

    With `groups`, one name per row, the best of each group of two rows or more is underlined in each column;
    rows of group "-" belong to none.
    """
    digits = {column.key: column.digits or 0 for column in table.columns}
    numbers = pd.DataFrame({key: pd.to_numeric(table.frame[key], errors="coerce").round(digits[key]) for key in keys})
    values = numbers.to_numpy(dtype=np.float64).reshape(len(table.frame), len(keys))
    bold = _best(values if along == "column" else values.T)
    bold = bold if along == "column" else bold.T
    underline = np.zeros_like(bold)
    for name in dict.fromkeys(groups or []):
        members = np.array([group == name for group in groups or []])
        if name != MISSING and members.sum() > 1:
            underline[members] = _best(values[members])
    return replace(table, bold=_places(bold, keys), underline=_places(underline, keys))


def to_csv(table: Table) -> str:
    """Plain values under the frame's own column names, and a last column `data`: phantom or real."""
    keys = []
    for column in table.columns:
        keys += [column.key] if column.beside is None else [column.key, column.beside]
    # cell by cell, for a column with a gap mixes numbers and text, which pandas' float_format leaves alone
    frame = table.frame[keys].map(lambda value: f"{value:.10g}" if _is_number(value) else value)
    frame = frame.assign(data="phantom" if table.phantom else "real")
    return frame.to_csv(index=False, na_rep=MISSING, lineterminator="\n")


def to_markdown(table: Table) -> str:
    """GitHub Markdown: best in **bold**, best per group in <u>."""

    def show(cell: Cell) -> str:
        text = re.sub(r"([\\|*`<])", r"\\\1", cell.text).replace("\n", " ")
        text = f"**{text}**" if cell.bold else text
        return f"<u>{text}</u>" if cell.underline else text

    header = [show(Cell(column.header)) for column in table.columns]
    rule = ["---" if column.digits is None else "---:" for column in table.columns]
    lines = [header, rule, *([show(cell) for cell in row] for row in cells(table))]
    parts = [f"## {table.full_title}", _plain_markdown(table.full_caption)]
    parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    if table.notes:
        parts.append("\n".join(f"- {_plain_markdown(note)}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def to_html(table: Table) -> str:
    """A <figure> with the caption above the table, everything escaped; scrolls sideways where too wide."""

    def show(cell: Cell) -> str:
        text = html.escape(cell.text)
        text = f"<strong>{text}</strong>" if cell.bold else text
        return f"<u>{text}</u>" if cell.underline else text

    out = io.StringIO()
    out.write(f'<figure id="{html.escape(table.name)}"><h2>{html.escape(table.full_title)}</h2>')
    out.write(f"<figcaption>{html.escape(table.full_caption)}</figcaption>")
    out.write('<div class="scroll" tabindex="0"><table><thead><tr>')
    classes = ["text" if column.digits is None else "number" for column in table.columns]
    for column, name in zip(table.columns, classes, strict=True):
        out.write(f'<th class="{name}" scope="col">{html.escape(column.header)}</th>')
    out.write("</tr></thead><tbody>")
    for place, row in enumerate(cells(table)):
        out.write("<tr>")
        for cell, name, column in zip(row, classes, table.columns, strict=True):
            value = table.frame[column.key].iloc[place]
            if column.heat and _is_number(value):
                out.write(f'<td class="{name} heat" style="--share: {float(value):.0f}">{show(cell)}</td>')
            else:
                out.write(f'<td class="{name}">{show(cell)}</td>')
        out.write("</tr>")
    out.write("</tbody></table></div>")
    if table.notes:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
        out.write(f'<ul class="notes">{notes}</ul>')
    out.write("</figure>")
    return out.getvalue()


def to_rich(table: Table, width: int) -> rich.console.Group:
    """The table for a terminal of `width` characters, without the columns that are too wide for any: where the others
    do not fit, in parts one below the other, each with the first column, for a number that is cut is another number.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    rows = cells(table)
    widths = [_terminal_width(column, [row[place].text for row in rows]) for place, column in enumerate(table.columns)]
    shown = []
    for places in _parts([place for place, column in enumerate(table.columns) if column.narrow], widths, width):
        title = None if shown else Text(table.full_title, style="bold")
        part = RichTable(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for place in places:
            column = table.columns[place]
            words = column.digits is None
            least = widths[place] - GAP if place == places[0] else None
            justify = "left" if words else "right"
            part.add_column(Text(column.header), justify=justify, no_wrap=not words, min_width=least)
        for row in rows:
            chosen = [row[place] for place in places]
            styles = [" ".join(["bold"] * cell.bold + ["underline"] * cell.underline) for cell in chosen]
            part.add_row(*(Text(cell.text, style=style) for cell, style in zip(chosen, styles, strict=True)))
        shown.append(part)
    return Group(*shown, Text("\n".join(table.notes), style="dim italic"))


def _parts(places: list[int], widths: list[int], width: int) -> list[list[int]]:
    """The columns at `places` in as few parts as fit into `width`, each with the first of them."""
    first, *others = places
    room = width - widths[first] - GAP  # for the edges
    parts, left = [[first]], room
    for place in others:
        if len(parts[-1]) > 1 and widths[place] > left:
            parts.append([first])
            left = room
        parts[-1].append(place)
        left -= widths[place]
    return parts


def _terminal_width(column: Column, texts: list[str]) -> int:
    """The characters that a column needs in a terminal: its longest number; of words, which fold, at most FOLDED."""
    of_header = max(map(len, column.header.split()), default=0)
    if column.digits is not None:
        return max(of_header, *map(len, texts), 0) + GAP
    word = max((len(word) for text in texts for word in text.split()), default=0)
    return max(of_header, word, min(max(map(len, texts), default=0), FOLDED)) + GAP


def cells(table: Table) -> list[list[Cell]]:
    """The body of the table, row by row, as shown in every form but CSV."""
    shown = []
    columns = [table.frame[column.key].tolist() for column in table.columns]
    besides = [table.frame[column.beside].tolist() if column.beside else None for column in table.columns]
    for place in range(len(table.frame)):
        row = []
        for column, values, beside in zip(table.columns, columns, besides, strict=True):
            text = _format(values[place], column.digits)
            if column.least is not None and _is_number(values[place]) and values[place] < column.least:
                text = f"<{column.least:g}"
            if beside is not None and _is_number(beside[place]):
                # an error of a few hundredths must not read 0.0
                digits = max(column.digits or 0, 2) if column.beside.endswith("SE") else column.digits
                text += f" ({_format(beside[place], digits)})"
            at = (place, column.key)
            row.append(Cell(text, at in table.bold, at in table.underline))
        shown.append(row)
    return shown


def _format(value: object, digits: int | None) -> str:
    if _is_number(value) and digits is not None:
        return f"{float(value):,.{digits}f}"
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return MISSING
    return str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not math.isnan(value)


def _best(values: np.ndarray) -> np.ndarray:
    """(N, K) -> (N, K) bool: where each column has its highest number; nowhere in a column of NaN."""
    filled = np.where(np.isnan(values), -np.inf, values)
    return (filled == filled.max(axis=0, initial=-np.inf)) & np.isfinite(filled)


def _places(mask: np.ndarray, keys: list[str]) -> frozenset[tuple[int, str]]:
    return frozenset((int(row), keys[column]) for row, column in zip(*np.nonzero(mask), strict=True))


def _plain_markdown(text: str) -> str:
    return re.sub(r"([\\*`<])", r"\\\1", text).replace("\n", " ")
