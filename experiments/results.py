"""docs/results.md and the README's headline table, from the archives in docs/results: `python -m experiments.results`.

The page is a Jinja template (docs/results.md.j2). No result stands in it: tables, figures and numbers are taken from
the reports of the archives (`bench archive`), each of which is built anew. `--check` writes nothing and ends with 1
where a text, of the page or of the README, differs from what would be written (figures are not compared).
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import jinja2
import numpy as np
import pandas as pd
import typer

from bench.atomic import write_file, write_text
from bench.errors import UserError
from bench.search import in_words
from bench.suite_folder import read_spec
from bench.tuned import Trial, read_tuned
from reports.aggregate import score, seed_scores
from reports.build import build_report
from reports.grid import check_grid
from reports.load import SuiteResults, load_suite
from reports.tables import Column, Table, highlight, to_markdown

ROOT = Path(__file__).resolve().parents[1]
ARCHIVES, PAGE = Path("docs/results"), Path("docs/results.md")
FIGURES = Path("docs/figures/results")
MAIN = "main_table"
NO_ARCHIVE = f"no archive in {ARCHIVES}: make one with `bench archive NAME {ARCHIVES}/PART`"
README, HEADLINE = Path("README.md"), ("<!-- results: begin -->\n", "<!-- results: end -->\n")


@dataclass(frozen=True)
class Page:
    """What is written: texts and pictures by their path below the root."""

    texts: dict[Path, str]
    pictures: dict[Path, bytes]


def make_page(root: Path = ROOT) -> Page:
    """The page and the README below `root`, made anew. UserError for an archive, table, row or figure that is not
    there."""
    begin, end = _around((root / README).read_text("utf-8"))
    pictures: dict[Path, bytes] = {}
    with tempfile.TemporaryDirectory() as scratch:

        @cache
        def report(part: str, paper: bool) -> Path:
            folder = Path(scratch) / f"{part}-{paper}"
            build_report(root / ARCHIVES / part, folder, paper=paper)
            return folder

        @cache
        def suite(part: str) -> SuiteResults:
            return load_suite(root / ARCHIVES / part)

        def file(part: str, name: str, paper: bool = False) -> Path:
            path = report(part, paper) / name
            if not path.is_file():
                raise UserError(f"the report of {ARCHIVES / part} has no {name}: see `bench report {ARCHIVES / part}`")
            return path

        def figure(part: str, name: str, text: str, paper: bool = False) -> str:
            drawn = report(part, paper) / f"{name}.png"
            if not drawn.is_file():  # the report has nothing to draw there
                return ""
            path = FIGURES / f"{part}_{name}.png"
            pictures[path] = drawn.read_bytes()
            return f"![{text}]({path.relative_to(PAGE.parent)})"

        def table(part: str, name: str, paper: bool = False) -> str:
            return without_heading(file(part, f"{name}.md", paper).read_text("utf-8"))

        def section(part: str, name: str) -> str:
            said = file(part, f"{MAIN}.md").read_text("utf-8") if name != MAIN else ""
            return as_section(file(part, f"{name}.md").read_text("utf-8"), said)

        def exists(part: str, pattern: str = "suite.json") -> bool:
            return any((root / ARCHIVES / part).glob(pattern))

        def frames(name: str, parts: Mapping[str, str]) -> dict[str, pd.DataFrame]:
            return {
                where: pd.read_csv(file(part, name), na_values="-") for part, where in parts.items() if exists(part)
            }

        tools = {
            "table": table,
            "section": section,
            "figure": figure,
            "exists": exists,
            "ledger": lambda parts: ledger(frames("claims.csv", parts)),
            "side_by_side": lambda parts: side_by_side(frames("seeds.csv", parts)),
            "about": lambda part: about(suite(part)),
            "ablated": lambda part: list(suite(part).ablations),
            "hours": lambda *parts: f"{hours([suite(part) for part in parts if exists(part)]):.0f}",
            "dice": lambda part, row: f"{_mean(file(part, 'seeds.csv'), row):.1f}",
            "by_seed": lambda name, parts: by_seed({w: suite(p) for p, w in parts.items() if exists(p)}, name),
            "recipe": lambda *parts: recipe([suite(part) for part in parts if exists(part)]),
            "searched": lambda part: searched(root / ARCHIVES / part),
        }
        page = _rendered(root / PAGE.with_suffix(".md.j2"), tools)
        headline = _rendered(root / PAGE.with_name("headline.md.j2"), tools)
    return Page({PAGE: page, README: begin + headline + end}, pictures)


def without_heading(markdown: str) -> str:
    """A report's table with caption and notes, its heading left to the page."""
    return re.sub(r"\A## .*\n+", "", markdown).strip()


def as_section(markdown: str, said: str) -> str:
    """A report's table below a heading of the third level, without the notes that stand in `said`."""
    notes = {line for line in said.splitlines() if line.startswith("- ")}
    return "#" + "\n".join(line for line in markdown.splitlines() if line not in notes).strip()


def ledger(claims: Mapping[str, pd.DataFrame]) -> str:
    """The claims ledgers of several reports in one Markdown table, claim by claim: where -> its claims.csv.

    What was run nowhere is one line that says so.
    """
    columns = (
        Column("claim", "Claim"),
        Column("paper", "Paper", 1),
        Column("where", "On"),
        Column("ours", "Ours", 2),
        Column("interval", "95% interval"),
        Column("cases", "Patients", 0),
        Column("seeds", "Seeds", 0),
        Column("verdict", "Verdict"),
    )
    if not claims:
        raise UserError(NO_ARCHIVE)
    lines = pd.concat([frame.assign(where=where) for where, frame in claims.items()], ignore_index=True)
    run = lines["verdict"] != "not run"
    lines.loc[run & (lines["unit"] == "x"), "where"] = "counted"  # of no data set, and without an error
    missing = lines[~lines["claim"].isin(lines.loc[run, "claim"])].drop_duplicates("claim").assign(where="-")
    order = {claim: place for place, claim in enumerate(lines["claim"].unique())}
    kept = pd.concat([lines[run], missing]).sort_values("claim", key=lambda names: names.map(order), kind="stable")
    kept = kept.drop_duplicates(["claim", "where"])
    kept["claim"] = kept["claim"] + kept["unit"].map(lambda unit: "" if unit == "points" else f" ({unit})")
    kept["interval"] = [
        "-" if pd.isna(line.low) else f"{line.low:.2f} to {line.high:.2f}" for line in kept.itertuples()
    ]
    kept = kept.reset_index(drop=True)
    # a claim and the paper's number stand once
    again = kept["claim"].duplicated()
    kept["claim"], kept["paper"] = kept["claim"].mask(again, ""), kept["paper"].astype(object).mask(again, "")
    return without_heading(to_markdown(Table("ledger", "", "", kept, columns)))


def side_by_side(seeds: Mapping[str, pd.DataFrame]) -> str:
    """The averages of several reports in one Markdown table, a column for each: where -> its seeds.csv.

    The standard error is over patients and seeds, with one seed over patients.
    """
    if not seeds:
        raise UserError(NO_ARCHIVE)
    keys = {where: f"mean {where}" for where in seeds}
    frames = [
        frame.set_index("label")
        .assign(se=lambda rows: rows["se"].fillna(rows["patient_se"]))[["mean", "se"]]
        .rename(columns={"mean": keys[where], "se": f"{where} SE"})
        for where, frame in seeds.items()
    ]
    frame = pd.concat(frames, axis=1).rename_axis("label").reset_index()
    columns = [Column(key, where, 1, beside=f"{where} SE") for where, key in keys.items()]
    table = Table("headline", "", "", frame, (Column("label", "Mean Dice (SE)"), *columns))
    return without_heading(to_markdown(highlight(table, "column", list(keys.values()))))


def about(results: SuiteResults) -> str:
    """The commands, the split's hash, how many of the runs made here have ended, and what they ran on."""
    archive = results.folder
    runs = [run for run in results.runs if run.origin is None and run.state != "left out"]
    finished = sum(run.state == "finished" for run in runs)
    hours = sum(run.seconds or 0 for run in runs) / 3600
    machines = sorted(
        {f"{run.env['processor']} ({run.env.get('instructions')})" for run in runs if "processor" in run.env}
    )
    commands = "; ".join(f"`{command}`" for command in results.commands)
    return (
        f"{commands}, split `{results.split_hash}`: {finished} of {len(runs)} runs, "
        f"{hours:.1f} hours of trials{' on ' * bool(machines)}{' and '.join(machines)}; archive "
        f"`{archive.relative_to(archive.parents[2])}`."
    )


def hours(suites: Sequence[SuiteResults]) -> float:
    """How long the runs of some suites took, one after the other; a run of two of them counts once."""
    return sum({run.run_id: run.seconds or 0 for suite in suites for run in suite.runs}.values()) / 3600


def _mean(file: Path, row: str) -> float:
    """The average of a row in a seeds.csv. UserError where it has no such row."""
    means = pd.read_csv(file, na_values="-").set_index("label")["mean"]
    if row not in means:
        raise UserError(f"the report has no row {row!r}, it has {', '.join(means.index)}")
    return float(means[row])


def by_seed(suites: Mapping[str, SuiteResults], name: str) -> str:
    """Dice of one object in percent, seed by seed, and the mean of all other masks: where -> suite; a line per decoder.

    Rows without a backbone are left out: the seeds and steps of a suite are not theirs.
    """
    columns, series = [], {}
    for where, suite in suites.items():
        grid = check_grid(suite)
        scores = score(suite.records, grid)
        inside = (scores.cases["object"] == name).to_numpy()
        decoders = [place for place, row in enumerate(grid.rows) if row.backbone != "-"]
        labels = [grid.rows[place].label for place in decoders]
        means = seed_scores(scores, np.c_[inside, ~inside])[:, :, decoders]  # (seeds, 2, rows)
        seeds = [", ".join(f"{dice:.1f}" for dice in row[np.isfinite(row)]) for row in means[:, 0].T]
        series[f"{name}, {where}"] = pd.Series(seeds, labels)
        series[f"all else, {where}"] = pd.Series(means[:, 1].mean(axis=0), labels)
        columns.append(Column(f"{name}, {where}", f"{name.capitalize()}, {where}"))
        columns.append(Column(f"all else, {where}", f"All else, {where}", 1))
    frame = pd.DataFrame(series).rename_axis("label").reset_index()
    return without_heading(to_markdown(Table("by_seed", "", "", frame, (Column("label", "Method"), *columns))))


def recipe(suites: Sequence[SuiteResults]) -> str:
    """The recipe of the decoders of some suites, a line for each field ("50 or 0" where they differ), and BoltzFormer's
    model. UserError where no run has them.
    """
    folders = [run.folder for suite in suites for run in suite.runs]
    specs = [read_spec(folder) for folder in folders if (folder / "spec.json").is_file()]
    recipes = [spec.recipe.model_dump() for spec in specs if spec.recipe is not None]
    models = [spec.model.model_dump() for spec in specs if spec.model is not None and spec.method == "boltzformer"]
    if not recipes or not models:
        raise UserError(f"no run of BoltzFormer in {ARCHIVES}: archive a suite that has one")
    fields = _all_values(recipes) | {f"model.{name}": value for name, value in _all_values(models).items()}
    return "\n".join(["| Field | Value |", "| --- | --- |", *(f"| `{name}` | {fields[name]} |" for name in fields)])


def _all_values(dumps: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Each field's values, every one once, in the order met."""
    return {name: " or ".join(dict.fromkeys(str(dump[name]) for dump in dumps)) for name in dumps[0]}


def searched(folder: Path) -> str:
    """The searches in a folder: a line per method, a column per configuration, the Dice on validation in percent at the
    step of the lowest validation loss; in bold what has the lowest loss of all, which is what `--tuned` takes. Below,
    what each method was given, and the split.
    """
    found = read_tuned(folder)
    trials = [trial for tuned in found.values() for trial in tuned.trials]
    columns = list(dict.fromkeys(in_words(trial.configuration) for trial in sorted(trials, key=_values)))
    lines = ["| Method | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for (method, backbone), tuned in found.items():
        cells = {}
        for trial in tuned.trials:
            cell = "-" if trial.val_dice is None else f"{100 * trial.val_dice:.1f}"
            cell += "" if trial.outcome == "trained" else f" ({trial.outcome} at {trial.steps})"
            cells[in_words(trial.configuration)] = f"**{cell}**" if trial.configuration == tuned.best else cell
        lines.append(f"| `{method}`, {backbone} | " + " | ".join(cells.get(name, "-") for name in columns) + " |")
    given = dict.fromkeys(f"{tuned.budget}, split `{tuned.base.split_hash}`" for tuned in found.values())
    return "\n".join([*lines, "", f"Each: {'; '.join(given)}."])


def _values(trial: Trial) -> list[float]:
    return list(trial.configuration.values())


def _rendered(template: Path, tools: Mapping[str, Callable]) -> str:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template.read_text("utf-8")).render(tools)


def _around(readme: str) -> tuple[str, str]:
    """What stands before and after the headline, the marks with it. UserError where there is no one place for it."""
    begin, end = HEADLINE
    if readme.count(begin) != 1 or readme.count(end) != 1:
        raise UserError(
            f"{README} has no place for the headline table: write {begin.strip()} and {end.strip()} into it"
        )
    before, rest = readme.split(begin)
    return before + begin, end + rest.split(end)[1]


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 where something differs.")] = False,
) -> None:
    """Write docs/results.md, its figures and the README's headline table from the archives in docs/results."""
    try:
        page = make_page()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    different = [path for path, text in page.texts.items() if _text(ROOT / path) != text]
    if check:
        for path in different:
            print(f"{path} is not what `python -m experiments.results` writes")
        raise typer.Exit(1 if different else 0)
    for path, text in page.texts.items():
        write_text(ROOT / path, text)
    for path, picture in page.pictures.items():
        write_file(ROOT / path, lambda handle, content=picture: handle.write(content))
    print(f"wrote {', '.join(map(str, page.texts))} and {len(page.pictures)} figures")


def _text(path: Path) -> str | None:
    return path.read_text("utf-8") if path.is_file() else None


if __name__ == "__main__":
    typer.run(main)
