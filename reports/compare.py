"""Two suite folders side by side: what changed between them, method by method on the same masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from bench.atomic import write_file
from bench.errors import UserError
from reports.aggregate import score, seed_scores
from reports.frame import FRAME_COLUMNS, IDS
from reports.grid import check_grid
from reports.latex import to_latex
from reports.load import SuiteResults, load_suite
from reports.significance import paired_tests, patient_means
from reports.significance_tables import TESTED
from reports.statistics import DRAWS, cluster_bootstrap, differences
from reports.strata import GROUPS, members
from reports.tables import Column, Table, to_csv, to_markdown

SECOND = "\N{ZERO WIDTH SPACE}"  # marks the rows of the second folder; no method has it in its name


def compare(first: Path, second: Path) -> tuple[Table, list[Path]]:
    """The table of `compare_table` and the files it was written to, in the report folder of `first`.

    UserError for folders that are no suites, and for those that have no test masks or no rows in common.
    """
    a, b = (load_suite(folder).on_common_seeds() for folder in (first, second))
    table = compare_table(a, b)
    folder = first / "report"
    folder.mkdir(exist_ok=True)
    forms = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
    files = [folder / f"{table.name}.{form}" for form in forms]
    for file, form in zip(files, forms.values(), strict=True):
        write_file(file, lambda handle, form=form: handle.write(form(table).encode()))
    return table, files


def compare_table(a: SuiteResults, b: SuiteResults) -> Table:
    """Of every row that both suites have: its Dice in each, and the difference (b minus a) with interval and test.

    Seeds that both have, or all where they share none, are averaged case by case in each. Only the test masks that both
    have count: their areas must agree.
    """
    names = a.folder.resolve().name, b.folder.resolve().name
    if a.split_hash != b.split_hash:
        raise UserError(
            f"{a.folder} was run on split {a.split_hash}, {b.folder} on {b.split_hash}: run both on the same data and "
            "split"
        )
    shared = [row for row in _rows(a) if row in set(_rows(b))]
    if not shared:
        raise UserError(f"{a.folder} and {b.folder} have no method in common: `bench list runs` shows what they hold")
    lines = []
    for method, backbone in shared:
        pair = _pair(a, b, method, backbone)
        grid = check_grid(pair)
        scores = score(pair.records, grid)
        groups = members(scores.cases["area_pct"], GROUPS)
        bootstrap = cluster_bootstrap(scores, groups)
        places = {name: GROUPS.index(group) for name, group in TESTED.items()}
        inside = members(scores.cases["area_pct"], tuple(TESTED.values()))
        means = {name: patient_means(scores, inside[:, place]) for place, name in enumerate(places)}
        line: dict[str, object] = {"method": a.label(method, backbone)}
        for name, place in places.items():
            for side, row in enumerate(grid.rows):
                estimate = bootstrap.estimate[place, side]
                line[f"{name} {side}"] = row.gap if np.isnan(estimate) else estimate
                line[f"{name} {side} SE"] = bootstrap.standard_error[place, side]
        effect = differences(bootstrap, grid.rows, places, method, seed_scores(scores, groups)).iloc[0]
        tests = paired_tests(means, grid.rows, method).iloc[0]
        for name in places:
            line |= {f"{name} difference": effect[name], f"{name} low": effect[f"{name}_low"]}
            line |= {f"{name} high": effect[f"{name}_high"], f"{name} p": tests[f"{name}_p"]}
        lines.append(line)
    columns = [Column("method", "Method")]
    for name in TESTED:
        columns += [
            Column(f"{name} {side}", f"{folder}, {name} (SE)", 1, beside=f"{name} {side} SE")
            for side, folder in enumerate(names)
        ]
        columns += [Column(f"{name} difference", f"difference ({name})", 1), Column(f"{name} low", "low", 1)]
        columns += [Column(f"{name} high", "high", 1), Column(f"{name} p", "p", 3, least=0.001)]
    caption = (
        f"Dice in percent in {names[0]} and {names[1]}, weighted as in the table by size, and the difference (second "
        f"minus first) with its 95% interval ({DRAWS:,} bootstrap draws of patients, the same for both; with two seeds "
        "or more in common, the spread of the difference over them, too) and p of Wilcoxon's signed-rank test on "
        "patients, corrected by Holm over the two sizes of a row; it holds no choice of seeds. Seeds that only one of "
        "them has are left out, unless they share none."
    )
    frame = pd.DataFrame(lines)
    return Table(f"compare-{names[1]}", f"{names[1]} against {names[0]}", caption, frame, tuple(columns), a.phantom)


def _rows(results: SuiteResults) -> list[tuple[str, str]]:
    return list(dict.fromkeys((run.method, run.backbone) for run in results.runs))


def _pair(a: SuiteResults, b: SuiteResults, method: str, backbone: str) -> SuiteResults:
    """One row of both suites as two rows of one, on the seeds that both have, or on all where they share none: the
    second's method has a mark behind its name.
    """
    runs, frames = [], []
    seeds = [{run.seed for run in results.runs_of(method, backbone)} for results in (a, b)]
    shared = seeds[0] & seeds[1] or seeds[0] | seeds[1]
    for results, mark in ((a, ""), (b, SECOND)):
        mine = [run for run in results.runs_of(method, backbone) if run.seed in shared]
        runs += [replace(run, method=method + mark) for run in mine]
        chosen = (results.records["method"] == method) & (results.records["backbone"] == backbone)
        chosen &= results.records["seed"].isin(shared)
        frames.append(results.records[chosen].astype(dict.fromkeys(IDS, "string")).assign(method=method + mark))
    return replace(a, runs=tuple(runs), records=pd.concat(frames, ignore_index=True).astype(FRAME_COLUMNS))
