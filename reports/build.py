"""`bench report`: what each table holds, and the folder they are written to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.atomic import write_file
from bench.errors import UserError
from experiments.paper import DATASET_LABELS
from reports.ablation import ablation_tables
from reports.aggregate import (
    Scores,
    dataset_average,
    dataset_means,
    object_sizes,
    per_object,
    record_dice,
    score,
    seed_scores,
)
from reports.cases import browser_cases
from reports.claims import claims_table, related
from reports.cost import cost_table
from reports.curve import curve_table, dice_vs_area
from reports.fairness import fairness_line, fairness_table
from reports.grid import Grid, check_grid
from reports.html import render
from reports.latex import to_latex
from reports.load import TO_COME, SuiteResults, load_suite
from reports.modality import modality_table
from reports.paper_columns import by_size_beside_paper, main_table_beside_paper, size_table_beside_paper
from reports.pictures import draw
from reports.quality import detection_table, quality_table
from reports.robustness import prompt_tables
from reports.significance import patient_means, ranking
from reports.significance_tables import difference_table, rank_table, seed_table
from reports.statistics import DRAWS, FEW_PATIENTS, Bootstrap, cluster_bootstrap
from reports.strata import ALL, GROUPS, members
from reports.tables import MISSING, Column, Table, highlight, to_csv, to_markdown

FORMS = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
# tables that compare methods with each other
COMPARING = (
    "main_table",
    "by_size",
    "differences",
    "ranks",
    "seeds",
    "per_object",
    "by_modality",
    "quality",
    "detection",
    "cost",
)


@dataclass(frozen=True)
class Report:
    """What `build_report` wrote. `tables` and `figures` map file names to paths; `main` is the main table,
    `frame` its numbers, `prompts` the table of prompt robustness where runs were asked for it (`bench phrasings`),
    `ablations` the tables of those by name; `gaps` says in words what is missing; `notes` what
    could not be drawn.
    """

    html: Path
    tables: dict[str, Path]
    figures: dict[str, Path]
    main: Table
    prompts: Table | None
    ablations: dict[str, Table]
    gaps: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """The main table's values, one row per method and backbone; gaps are "-" or "failed"."""
        return self.main.frame


def build_report(suite_dir: Path, out: Path | None = None, paper: bool = True) -> Report:
    """Writes every table and figure of a suite folder to `out`, by default <suite_dir>/report.

    paper: the paper's numbers stand in columns beside ours in `main_table`, `by_size`, `object_sizes` and those of the
    ablations, and as points in their figures; the claims name them in any case.

    Raises UserError for a folder that is no suite, a broken run, a run of another split or schema version,
    duplicate records, and an `out` that cannot be written.
    """
    everything = load_suite(Path(suite_dir))
    results = everything.on_common_seeds()
    waiting = seeds_to_come(everything, results)
    out = Path(out) if out is not None else Path(suite_dir) / "report"
    grid = check_grid(results)
    scores = score(results.records, grid)
    inside = members(scores.cases["area_pct"], GROUPS)
    bootstrap, by_seed = cluster_bootstrap(scores, inside), seed_scores(scores, inside)
    order = ranking(patient_means(scores, np.ones(len(scores.cases), bool)))
    gaps = [*gap_lines(results, grid), *waiting]
    tables = [
        main_table(results, grid, scores, bootstrap),
        by_size(results, grid, scores, bootstrap),
        difference_table(results, grid, scores, bootstrap, by_seed),
        rank_table(results, grid, bootstrap, order),
        seed_table(results, grid, bootstrap, by_seed),
        object_table(results, grid, scores),
        *filter(None, (modality_table(results, grid, scores),)),
        quality_table(results, grid, scores),
        *filter(None, (detection_table(results, grid),)),
        *prompt_tables(results, grid),
        size_table(results, scores),
        cost_table(results, grid),
        fairness_table(results, grid),
    ]
    if paper:
        tables = [beside_paper(table, results, grid) for table in tables]
    ablated = ablation_tables(results, grid, by_seed, paper)
    tables += [table for table, _ in ablated]
    fair, origins = fairness_line(results, grid), origin_notes(results)
    tables = [
        replace(table, notes=(*waiting, *table.notes, *origins, *([fair] if fair and table.name in COMPARING else [])))
        for table in tables
    ]
    curves = dice_vs_area(scores, grid)
    costs = next(table for table in tables if table.name == "cost")
    pictures, notes = draw(results, grid, scores, bootstrap, order, curves, costs)
    pictures += [picture for _, picture in ablated if picture is not None]
    if any(run.origin is None for run in results.runs):  # published rows alone test no claim
        profile = results.folder.absolute().parent / "profile" / "profile.csv"
        tables.insert(0, claims_table(related(results), profile))
    tables.append(replace(run_table(everything), notes=(*waiting, *origins)))
    cases = browser_cases(results, grid, scores)
    page = render(results, tables, pictures, caveats(results, grid, scores) + notes, gaps, cases)
    files = {f"{table.name}.{form}": write(table).encode() for table in tables for form, write in FORMS.items()}
    files["dice_vs_area.csv"] = to_csv(curve_table(curves, results.phantom)).encode()
    images = {f"{picture.name}.png": picture.drawing.png for picture in pictures}
    images |= {f"{picture.name}.svg": picture.drawing.svg for picture in pictures}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in {**files, **images, "index.html": page.encode()}.items():
            write_file(out / name, lambda handle, content=content: handle.write(content))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): free the space or name another folder") from error
    return Report(
        html=out / "index.html",
        tables={name: out / name for name in files},
        figures={name: out / name for name in images},
        main=next(table for table in tables if table.name == "main_table"),
        prompts=next((table for table in tables if table.name == "prompts"), None),
        ablations={name: table for name, (table, _) in zip(results.ablations, ablated, strict=True)},
        gaps=tuple(gaps),
        notes=tuple(notes),
    )


def main_table(results: SuiteResults, grid: Grid, scores: Scores, bootstrap: Bootstrap) -> Table:
    """The paper's Table 1, with the standard error of Avg. and what each method cost beside it."""
    means = dataset_means(scores, grid.datasets)
    gaps = [row.gap for row in grid.rows]
    frame = pd.DataFrame({"method": [row.label for row in grid.rows]})
    frame["average"] = _fill(dataset_average(means), gaps)
    frame["average SE"] = bootstrap.standard_error[GROUPS.index(ALL)]
    for place, dataset in enumerate(grid.datasets):
        frame[dataset] = _fill(means[:, place], gaps)
    fits = [_fit(results, row) for row in grid.rows]
    frame["parameters"] = _fill([_mean(fit, "parameters") for fit in fits], gaps)
    frame["budget"] = [_budget(fit) or row.gap for fit, row in zip(fits, grid.rows, strict=True)]
    frame["train_seconds"] = _fill([_mean(fit, "train_seconds") for fit in fits], gaps)
    frame["ms_per_prompt"] = _fill(1000 * scores.seconds, gaps)
    runs = [results.runs_of(row.method, row.backbone) for row in grid.rows]
    frame["seeds"] = [sum(run.state == "finished" for run in mine) for mine in runs]
    columns = (
        Column("method", "Method"),
        Column("average", "Avg. (SE)", 1, beside="average SE"),
        *(Column(dataset, DATASET_LABELS.get(dataset, dataset), 1) for dataset in grid.datasets),
        Column("parameters", "Parameters", 0, narrow=False),
        Column("budget", "Budget", narrow=False),
        Column("train_seconds", "Training, s", 0),
        Column("ms_per_prompt", "ms/prompt", 1),
        Column("seeds", "Seeds", 0, narrow=False),
    )
    caption = (
        "Mean Dice in percent over the test masks of each data set, and the unweighted mean over data "
        "sets, as in Table 1 of the paper. Best in bold, best on the same backbone underlined. SE: "
        f"standard error of Avg. over {DRAWS:,} bootstrap draws of patients within data sets; it holds no choice of "
        "seeds, which the table of patients and seeds does. Parameters: "
        "trainable. '-': missing; 'failed': its run failed."
    )
    table = Table(
        "main_table",
        "Dice by data set",
        caption,
        frame,
        columns,
        results.phantom,
        notes=fit_notes(results, grid),
    )
    return highlight(table, "column", ["average", *grid.datasets], [row.backbone for row in grid.rows])


def by_size(results: SuiteResults, grid: Grid, scores: Scores, bootstrap: Bootstrap) -> Table:
    """The paper's Table 2 (small, large, all) and seven finer bins, with its weighting (`group_scores`)."""
    inside = members(scores.cases["area_pct"], GROUPS)
    frame = pd.DataFrame({"area": [group.label for group in GROUPS], "support": inside.sum(axis=0)})
    frame["patients"] = [len(scores.cases.loc[flags, ["dataset", "patient"]].drop_duplicates()) for flags in inside.T]
    for place, row in enumerate(grid.rows):
        gap = row.gap if not scores.complete[place] else "-"
        frame[row.label] = _fill(bootstrap.estimate[:, place], [gap] * len(GROUPS))
        frame[f"{row.label} SE"] = bootstrap.standard_error[:, place]
    columns = (
        Column("area", "Object area"),
        Column("support", "Masks", 0),
        Column("patients", "Patients", 0),
        *(Column(row.label, row.label, 1, beside=f"{row.label} SE") for row in grid.rows),
    )
    caption = (
        "Dice in percent (standard error over patients) by object area in percent of the image, as in Table 2 of the "
        "paper: mean per size group on each data set, averaged over data sets weighted by the fraction of "
        "the data set's masks that are in the group. Best in bold. A method with a gap has no average. Of fewer than "
        f"{FEW_PATIENTS} patients the standard error comes out too small."
    )
    table = Table("by_size", "Dice by object size", caption, frame, columns, results.phantom)
    return highlight(table, "row", [row.label for row in grid.rows])


def object_table(results: SuiteResults, grid: Grid, scores: Scores) -> Table:
    """Mean and median Dice per object: on hard objects the two differ widely."""
    frame, means, medians = per_object(scores)
    for place, row in enumerate(grid.rows):
        frame[row.label] = _fill(means[:, place], [row.gap] * len(frame))
        frame[f"{row.label} median"] = medians[:, place]
    columns = (
        Column("dataset", "Data set"),
        Column("object", "Object"),
        Column("support", "Masks", 0),
        *(Column(row.label, row.label, 1, beside=f"{row.label} median", heat=True) for row in grid.rows),
    )
    caption = "Mean (median) Dice in percent over the test masks of each object. Best mean in bold."
    table = Table("per_object", "Dice by object", caption, frame, columns, results.phantom)
    return highlight(table, "row", [row.label for row in grid.rows])


def size_table(results: SuiteResults, scores: Scores) -> Table:
    """The paper's Table 9 from the truth of the test masks (`check_grid` holds that all runs agree on it)."""
    columns = (
        Column("dataset", "Data set"),
        Column("object", "Object"),
        *(Column(f"area_{name}_pct", f"{name.capitalize()}, %", 3) for name in ("mean", "median", "min", "max")),
        Column("support", "Masks", 0),
    )
    caption = "Area of the test masks in percent of the image, as in Table 9 of the paper."
    return Table("object_sizes", "Object sizes", caption, object_sizes(scores.cases), columns, results.phantom)


def beside_paper(table: Table, results: SuiteResults, grid: Grid) -> Table:
    """The table with the paper's numbers, where the paper has such a table."""
    if table.name == "main_table":
        return main_table_beside_paper(table, results, grid)
    if table.name == "by_size":
        return by_size_beside_paper(table, grid)
    return size_table_beside_paper(table) if table.name == "object_sizes" else table


def run_table(results: SuiteResults) -> Table:
    """Every expected run and what came of it, with the average of its own records."""
    own = results.records.assign(dice=record_dice(results.records))
    means = own.groupby(["method", "backbone", "seed", "dataset"], observed=True)["dice"].mean()
    averages = means.groupby(level=["method", "backbone", "seed"], observed=True).mean().to_dict()
    columns = (
        Column("run", "Run"),
        Column("state", "State"),
        Column("average", "Avg.", 1),
        Column("seconds", "Seconds", 0),
        Column("images_seen", "Images seen", 0),
        Column("commit", "Commit"),
        Column("error", "Error", narrow=False),
    )
    rows = [
        {
            "run": run.run_id,
            "state": run.state,
            "average": averages.get((run.method, run.backbone, run.seed)),
            "seconds": run.seconds,
            "images_seen": run.fit.get("images_seen"),
            "commit": commit_of(run.env),
            "error": run.error or "",
        }
        for run in results.runs
    ]
    frame = pd.DataFrame(rows, columns=[column.key for column in columns])
    caption = "Every run the suite expects. Avg.: mean over data sets of the mean Dice of what it has."
    return Table("runs", "Runs", caption, frame, columns, results.phantom)


def commit_of(env: Mapping[str, Any]) -> str:
    """Ten digits of the commit that a run was made by, and whether files had been changed since."""
    git = env["git"] if isinstance(env.get("git"), dict) else {}
    return str(git.get("commit") or MISSING)[:10] + (" and changes" if git.get("dirty") else "")


def seeds_to_come(everything: SuiteResults, results: SuiteResults) -> tuple[str, ...]:
    """A line on the seeds of the suite that `results`, what the tables are made of, leave out; none where they hold
    all.
    """
    kept = {run.seed for run in results.runs}
    later = [run for run in everything.runs if run.seed not in kept and run.state != "left out"]
    if not later:
        return ()
    seeds = sorted({run.seed for run in later})
    come = sum(run.state in TO_COME for run in later)
    which = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return (f"In no table yet: {which}, of which {come} of {len(later)} runs are still to come.",)


def gap_lines(results: SuiteResults, grid: Grid) -> list[str]:
    """One line per run with gaps: how many records of which data sets are missing, and why."""
    lines = []
    for (method, backbone, seed), group in grid.gaps.groupby(["method", "backbone", "seed"], sort=False):
        where = ", ".join(f"{gap.dataset} {gap.missing} of {gap.expected}" for gap in group.itertuples())
        lines.append(f"{results.label(method, backbone)}, seed {seed}: {group['reason'].iloc[0]} (missing: {where})")
    return lines


def fit_notes(results: SuiteResults, grid: Grid) -> tuple[str, ...]:
    """The footnotes that the methods gave to their rows."""
    notes = []
    for row in grid.rows:
        for fit in _fit(results, row):
            notes += [f"{row.label}: {note}" for note in fit.get("notes") or []]
    return tuple(dict.fromkeys(notes))


def origin_notes(results: SuiteResults) -> tuple[str, ...]:
    """Which rows were not run here and where they come from, a line for each source."""
    rows: dict[str, list[str]] = {}
    for run in results.runs:
        if (origin := run.origin) is None:
            continue
        published = origin.kind == "published"
        what = "Imported, not run here (Dice as published" if published else "Not run here, scored here (masks"
        label = results.label(run.method, run.backbone) + (f" from column {origin.column}" if published else "")
        rows.setdefault(f"{what} in {origin.source}, sha256 {origin.sha256[:12]})", []).append(label)
    return tuple(f"{source}: {', '.join(labels)}." for source, labels in rows.items())


def caveats(results: SuiteResults, grid: Grid, scores: Scores) -> list[str]:
    """What a reader must know before believing the tables, derived from the runs themselves."""
    lines = [*origin_notes(results)]
    if results.profile != "paper" and any(run.origin is None for run in results.runs):
        lines.append(
            f"The profile '{results.profile}' is not the paper's scale: its numbers beside ours say what was "
            "published, not what to expect."
        )
    budgets = [(row.label, _budget(_fit(results, row))) for row in grid.rows]
    lines += [f"{label} was given: {budget}." for label, budget in budgets if budget]
    lines += fit_notes(results, grid)
    if any(len(row.seeds) == 1 for row in grid.rows):
        lines.append("Rows with one seed: their standard error holds the sampling of patients, not that of training.")
    patients = scores.cases.groupby("dataset")["patient"].nunique()
    few = [f"{name} ({count})" for name, count in patients.items() if count < FEW_PATIENTS]
    if few:
        lines.append(
            f"Fewer than {FEW_PATIENTS} test patients, so the standard error comes out too small: {', '.join(few)}."
        )
    published = {run.method for run in results.runs if run.published}
    for row, count in zip(grid.rows, scores.both_empty, strict=True):
        if count:
            which = "published records" if row.method in published else "records without truth and prediction"
            lines.append(f"{row.label}: {count} {which} have no Dice, left out.")
    return lines


def _fit(results: SuiteResults, row) -> list[dict[str, Any]]:
    """The fit summaries of a row's runs, one per seed that got so far."""
    return [run.fit for run in results.runs_of(row.method, row.backbone) if run.fit]


def _budget(fits: list[dict[str, Any]]) -> str | None:
    """What a row's runs were given; where seeds differ, what they share stands once: "9 steps (step 6 or step 9)"."""
    given = list(dict.fromkeys(fit["budget"] for fit in fits if fit.get("budget")))
    starts = {text.partition(" (")[0] for text in given}
    if len(given) > 1 and len(starts) == 1 and all(text.endswith(")") for text in given):
        return f"{starts.pop()} ({' or '.join(text.partition(' (')[2][:-1] for text in given)})"
    return " or ".join(given) or None


def _mean(fits: list[dict[str, Any]], key: str) -> float:
    values = [fit[key] for fit in fits if fit.get(key) is not None]
    return float(np.mean(values)) if values else np.nan


def _fill(values, gaps: list[str]) -> list[float | str]:
    """Numbers as they are, and in the place of each NaN what stands for it."""
    return [gap if np.isnan(value) else float(value) for value, gap in zip(values, gaps, strict=True)]
