"""Every form of a table says the same, highlights the same, and escapes what it must."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from reports.tables import (
    Column,
    Table,
    cells,
    highlight,
    to_csv,
    to_html,
    to_markdown,
    to_rich,
)

NASTY = r"a|b & <i>50%_#$ {x} \~^"


def example(phantom=True):
    frame = pd.DataFrame(
        {
            "name": ["S", "T", NASTY, "N"],
            "dice": [71.24, 71.16, "failed", 60.0],
            "dice SE": [0.521, np.nan, np.nan, 0.004],
            "count": [1234567, 5, np.nan, 7],
        }
    )
    columns = (
        Column("name", "Name"),
        Column("dice", "Dice, %", 1, beside="dice SE"),
        Column("count", "N", 0),
    )
    table = Table("main_table", "Dice & more", "Mean.", frame, columns, phantom, notes=("one_note",))
    return highlight(table, "column", ["dice"], ["x", "x", "x", "-"])


def text_of(row):
    return [cell.text for cell in row]


def test_cells_are_rounded_and_gaps_stay():
    assert [text_of(row) for row in cells(example())] == [
        ["S", "71.2 (0.52)", "1,234,567"],
        ["T", "71.2", "5"],
        [NASTY, "failed", "-"],
        ["N", "60.0 (0.00)", "7"],
    ]


def test_highlight_marks_ties_as_shown_and_groups_of_two():
    table = example()
    assert table.bold == {(0, "dice"), (1, "dice")} and table.underline == {(0, "dice"), (1, "dice")}
    frame = pd.DataFrame({"a": [1.0, 3.0, 9.0], "b": [2.0, 1.0, np.nan]})
    plain = Table("t", "t", "c", frame, (Column("a", "a", 1), Column("b", "b", 1)))
    assert highlight(plain, "row", ["a", "b"]).bold == {(0, "b"), (1, "a"), (2, "a")}
    grouped = highlight(plain, "column", ["a", "b"], ["s", "s", "b"])
    assert grouped.bold == {(2, "a"), (0, "b")} and grouped.underline == {(1, "a"), (0, "b")}


def test_csv_is_machine_readable():
    table = pd.read_csv(io.StringIO(to_csv(example())), na_values="-")
    assert list(table.columns) == ["name", "dice", "dice SE", "count", "data"]
    assert table["name"].tolist() == ["S", "T", NASTY, "N"] and set(table["data"]) == {"phantom"}
    assert table["dice"].tolist() == ["71.24", "71.16", "failed", "60"]
    assert table["count"].tolist()[0] == 1234567 and np.isnan(table["count"].tolist()[2])
    assert set(pd.read_csv(io.StringIO(to_csv(example(phantom=False))))["data"]) == {"real"}


def test_markdown_has_as_many_cells_in_each_line():
    lines = [line for line in to_markdown(example()).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert "| <u>**71.2 (0.52)**</u> |" in lines[2]


class Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.cells, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def test_html_shows_the_cells_and_nothing_else():
    table = example()
    page = Text()
    page.feed(to_html(table).split("</table>")[0])
    shown = [text for row in cells(table) for text in text_of(row)]
    assert page.cells == ["Name", "Dice, %", "N", *shown]
    assert "i" not in page.tags  # the name's markup is text


def test_terminal_shows_the_cells():
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(to_rich(example(), 200))
    shown = console.file.getvalue()
    for row in cells(example()):
        assert all(text in shown for text in text_of(row))


@settings(deadline=None, max_examples=40)
@given(width=st.integers(44, 200), numbers=st.integers(1, 12), named=st.integers(1, 60))
def test_a_terminal_that_is_too_narrow_has_the_table_in_parts_and_never_cuts_a_number(width, numbers, named):
    frame = pd.DataFrame({"name": ["query ensemble only, of a row"[:named].strip(), "full"]})
    for place in range(numbers):
        frame[f"n{place}"] = [1000.25 + place, 7.0]
        frame[f"n{place} SE"] = [0.5, np.nan]
    frame["words"] = ["no different from the two others", "none"]
    columns = [Column(f"n{place}", "Average of all", 1, beside=f"n{place} SE") for place in range(numbers)]
    table = Table("t", "A table", "", frame, (Column("name", "Method"), *columns, Column("words", "Alike")))
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(to_rich(table, width))
    shown = console.file.getvalue()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    rows = cells(table)
    assert all(text in shown for row in rows for text in text_of(row)[1:-1])
    # each part says whose numbers they are
    parts = shown.split("Method")[1:]
    assert all("full" in part for part in parts)
    assert len(parts) == 1 or width < 56 + 16 * numbers
    assert all(word in shown for row in rows for word in (row[0].text + " " + row[-1].text).split())


@pytest.mark.parametrize("form", [to_markdown, to_html, to_csv])
def test_phantom_is_said_in_every_form(form):
    assert "phantom" in form(example()) and "phantom" not in form(example(phantom=False))
