"""Speedups, tables and bars of rows small enough to compute by hand."""

import io

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from bench.profiling.measure import Outcome, Row
from bench.profiling.report import COLUMNS, bar_rows, bars_table, csv_of, figure, frame_of, scope_table

LAYER = {"scope": "attention", "method": "boltzformer", "image_size": None, "tokens": 16384, "queries": 10}
LAYER |= {"sampling": 0.1, "prompts": 1, "phase": "forward", "dtype": "fp32", "threads": 1}


def row(path, seconds, gflop=1.0, **changes):
    return Row(**LAYER | {"path": path, "gflop": gflop, "seconds": seconds, "peak_mib": 2.0} | changes)


def text(table):
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()


def test_speedup_is_against_the_plain_path_of_the_same_case():
    rows = [
        row("plain", 6.0),
        row("gathered", 2.0),
        row("gathered", 3.0, sampling=0.5),
        row("gathered", 1.0, threads=2),
    ]
    rows += [row("plain", 8.0, method="full", sampling=None), row("auto", 2.0, method="full", sampling=None)]
    frame = frame_of(rows)
    assert frame["speedup"].fillna(-1).tolist() == [1.0, 3.0, -1, -1, 1.0, 4.0]
    assert frame["seconds"].tolist() == [6.0, 2.0, 3.0, 1.0, 8.0, 2.0]  # in the order of the rows


def test_csv_has_the_columns_and_reads_back():
    rows = [row("plain", 0.123456789), row("package", 2.0, method="sam", queries=None, sampling=None, peak_mib=None)]
    content = csv_of(frame_of(rows))
    assert content.splitlines()[0] == ",".join(COLUMNS)
    assert content.splitlines()[2] == "attention,sam,package,,16384,,,1,forward,fp32,1,1,2,,"
    assert pd.read_csv(io.StringIO(content))["seconds"].tolist() == [0.12346, 2.0]


def test_the_table_has_plain_beside_the_others_and_the_constants_in_its_title():
    shown = text(scope_table(frame_of([row("plain", 6.0), row("auto", 0.5), row("absorbed", 1.0)]), "attention"))
    (line,) = [line for line in shown.splitlines() if "0.5" in line]
    assert "12 x" in line and " 6 " in line
    assert "absorbed" not in shown and "queries 10" in shown.splitlines()[0]


def test_bars_are_ratios_of_this_run():
    rows = [row("plain", 6.0, 100.0), row("auto", 0.3, 2.5)]
    rows += [row("plain", 4.0, 100.0, threads=2), row("auto", 0.4, 2.5, threads=2)]
    shown = bar_rows(frame_of(rows))
    assert [line[1:] for line in shown] == [
        ["50 x", "40 x", "NO"],
        ["15 x", "20 x (1 thread), 10 x (2 threads)", "NO"],
    ]
    faster = [*rows[:3], row("auto", 0.25, 1.9, threads=2)]
    assert bar_rows(frame_of(faster))[1][2:] == ["20 x (1 thread), 16 x (2 threads)", "yes"]


@pytest.mark.parametrize(("size", "reached"), [(1024, "yes"), (512, "-")])
def test_a_bar_of_1024_px_is_not_reached_or_missed_at_another_size(size, reached):
    where = {"scope": "model", "image_size": size, "queries": 101}
    rows = [row("plain", 9.0, **where), row("fast", 3.0, **where), row("fast", 2.0, dtype="bf16", **where)]
    rows += [row("plain", 1.0, **where | {"image_size": 256}), row("fast", 1.0, **where | {"image_size": 256})]
    shown = bar_rows(frame_of(rows))
    assert [line[1:] for line in shown] == [["1.4 x", "3 x", reached], ["3 x", "4.5 x", reached]]
    assert ("the bar is for 1024" in shown[0][0]) == (size != 1024)


def test_the_harness_bar_takes_the_best_number_of_prompts():
    where = {"scope": "harness", "image_size": 256, "phase": "training step"}
    rows = []
    for prompts, together in ((2, 3.0), (4, 1.5)):
        rows += [row("one prompt per image", 4.5, prompts=prompts, **where)]
        rows += [row("together", together, prompts=prompts, **where)]
    assert bar_rows(frame_of(rows))[0][2:] == ["1.5 x (2 prompts), 3 x (4 prompts)", "yes"]


def test_outcomes_stand_with_the_bars_at_the_largest_size():
    outcomes = [Outcome(256, "small", "< 1%", "5%", False), Outcome(512, "large", "< 1%", "0.1%", True)]
    assert bar_rows(frame_of([row("plain", 1.0)]), outcomes) == [["large", "< 1%", "0.1%", "yes"]]
    assert "large" in text(bars_table(bar_rows(frame_of([row("plain", 1.0)]), outcomes)))


@pytest.mark.parametrize("scope", ["attention", "decoder", "model", "harness"])
def test_the_figure_draws_what_was_measured(scope):
    size = None if scope == "attention" else 256
    rows = [
        row(path, 1.0 + tokens, scope=scope, image_size=size, tokens=tokens)
        for path in ("plain", "fast")
        for tokens in (64, 256)
    ]
    picture = Image.open(io.BytesIO(figure(frame_of(rows))))
    assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 50
