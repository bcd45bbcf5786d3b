"""Was every method given the same? A table of what each was given and a line that stands under every table."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from bench.fairness import GIVEN
from reports.grid import Grid
from reports.load import Run, SuiteResults
from reports.tables import Column, Table

UNKNOWN = "not recorded"
NONE = "-"  # a method that has no such thing: no backbone, no gradient steps
PER_BACKBONE = ("backbone_weights",)  # equal for all methods on one backbone


def fairness_table(results: SuiteResults, grid: Grid) -> Table:
    """Rows: methods; columns: what each was given, of its first seed. A value unlike most others' is underlined."""
    firsts = [results.runs_of(row.method, row.backbone)[0] for row in grid.rows]
    frame = pd.DataFrame({"method": [row.label for row in grid.rows]})
    for key in GIVEN:
        frame[key] = [_given(run, key) for run in firsts]
    seed = min(run.seed for run in firsts) if firsts else 0
    odd = _odd([run for run in results.runs if run.seed == seed and run.origin is None])
    places = {(row.method, row.backbone): place for place, row in enumerate(grid.rows)}
    columns = (Column("method", "Method"), *(Column(key, text[0].upper() + text[1:]) for key, text in GIVEN.items()))
    caption = (
        "Underlined: not what most methods were given. '-': the method has no such thing. Split and weights as hashes "
        "(equal hashes are equal weights before training, compared on the same backbone), image size in px."
    )
    underline = frozenset((places[run.method, run.backbone], key) for run, key in odd)
    return Table(
        "fairness", "What each method was given", caption, frame, columns, results.phantom, frozenset(), underline
    )


def fairness_line(results: SuiteResults, grid: Grid) -> str:
    """One line: what all methods were given alike, and who differs in what. Compared seed by seed."""
    finished = [run for run in results.runs if run.fit and run.origin is None]
    if not any(run.fit.get("given") for run in finished):
        return f"What the methods were given is {UNKNOWN}." if finished else ""
    odd = _odd(finished)
    differing = {key for _, key in odd}
    there = {key for key in GIVEN if any(_given(run, key) != NONE for run in finished)}
    same = [text for key, text in GIVEN.items() if key in there - differing]
    lines = []
    for row in grid.rows:
        own = [(run, key) for run, key in odd if (run.method, run.backbone) == (row.method, row.backbone)]
        values = dict.fromkeys(f"{GIVEN[key]}: {_given(run, key)}" for run, key in own if _given(run, key) != NONE)
        without = dict.fromkeys(GIVEN[key] for run, key in own if _given(run, key) == NONE)
        values |= {f"no {', '.join(without)}": None} if without else {}
        if values:
            lines.append(f"{row.label} ({'; '.join(values)})")
    line = f"Alike for all methods: {', '.join(same)}." if same else "Nothing is alike for all methods."
    return line + (f" Unlike the others: {', '.join(lines)}." if lines else "")


def _odd(runs: list[Run]) -> list[tuple[Run, str]]:
    """The (run, fact) that are unlike those of most runs of the same seed."""
    found = []
    for key in GIVEN:
        groups: dict[tuple, list[Run]] = {}
        for run in runs:
            shared = run.backbone if key in PER_BACKBONE else None
            groups.setdefault((run.seed, shared), []).append(run)
        for (seed, shared), group in groups.items():
            usual = Counter(_given(run, key) for run in group).most_common(1)[0][0]
            others_have = shared == NONE and any(other == seed and name != NONE for other, name in groups)
            found += [(run, key) for run in group if others_have or _given(run, key) != usual]
    return found


def _given(run: Run, key: str) -> str:
    given = run.fit.get("given") or {}
    return given.get(key, NONE) if given else UNKNOWN
