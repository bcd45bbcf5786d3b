"""The commands that enter rows which were not run here. Each imports what it needs when it is called."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import UserError
from bench.options import RunsDir
from bench.terminal import progress_bar, terminal_console


class Missing(StrEnum):
    """What a mask that is not there means."""

    error = "error"
    empty = "empty"


class Extra(StrEnum):
    """What a file that is no mask of the test split means."""

    error = "error"
    ignore = "ignore"


def import_results(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder with <object>_metrics.csv, in it or below: file, area (px of 1024 x 1024), Dice.",
            metavar="DIR",
            show_default=False,
        ),
    ],
    label: Annotated[
        str | None,
        typer.Option("--as", help="Name of the first row; default: BiomedParse v1 (published).", metavar="NAME"),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Columns of the files that become rows; default: dice, medsam_dice, sam_dice, dino_sam_dice "
            "(dino_medsam_dice is there, too).",
            metavar="A,B",
        ),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(help="A run that the rows join; default: a folder of their own.", metavar="NAME|DIR"),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Enter published per-mask results as rows, and print the Dice table.

    BiomedParse's authors publish the Dice of BiomedParse, MedSAM and SAM with the true box, and Grounding DINO + SAM on
    every mask of the paper's test sets. Counts are not published: the rows hold the Dice as it is, and every table
    says that they were imported, from where, with the files' hash. MODEL + box was given the true object's bounding
    box, which no text-prompted decoder gets.

    With --into they join a run on the same test masks, so that its report shows them beside its own rows. It is
    refused where one of the run's masks was not published, or with another area or image size.

    \b
    Examples:
      bench import-results biomedparse_results --as "BiomedParse v1 (published)"
      bench import-results biomedparse_results --only dice --into main
    """
    from bench.external import suite_folder
    from bench.import_results import import_results as run

    console = terminal_console()
    folder = suite_folder(into or source.resolve().name, runs_dir)
    columns = None if only is None else [name.strip() for name in only.split(",") if name.strip()]
    with console.status("reading the files"):
        done = run(source, folder, into=into is not None, label=label, columns=columns, command=_command())
    console.print(done, highlight=False, markup=False, soft_wrap=True)
    _report(folder)


def evaluate(
    predictions: Annotated[
        Path,
        typer.Option(
            help="Folder of mask images, named as in test_mask; with several data sets one folder for each.",
            metavar="DIR",
            show_default=False,
        ),
    ],
    label: Annotated[str, typer.Option("--as", help="Name of the row.", metavar="NAME", show_default=False)],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A data set folder in the BiomedParse layout, or a folder of such; may be repeated."),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(
            help="A run whose test split is scored and whose report gets the row (--data may choose among its data "
            "sets); default: a folder of its own for these data.",
            metavar="NAME|DIR",
        ),
    ] = None,
    missing: Annotated[
        Missing, typer.Option(help="Masks that are not there: an error, or empty masks.")
    ] = Missing.error,
    extra: Annotated[
        Extra, typer.Option(help="Images that are no mask of the test split: an error, or passed over.")
    ] = Extra.error,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Score masks of any other tool against the test split, and print the Dice table.

    A mask is an image of the size of the scan's, 0 outside and one other value inside, named as the true mask is:
    <image stem>_<object, + for spaces>.png. Several tools on the same data stand in one table; with --into they stand
    beside the rows of a run.

    \b
    Examples:
      bench evaluate --predictions masks --data data/openkbp --as "My tool"
      bench evaluate --predictions masks --as "My tool" --into main-openkbp
    """
    from bench.evaluate import evaluate as run

    if not data and into is None:
        raise UserError("nothing to score against: name data set folders with --data, or a run with --into")
    with progress_bar(terminal_console(), "scoring masks") as on_progress:
        folder = run(
            predictions,
            data or (),
            label,
            runs_dir,
            into=into,
            missing_as_empty=missing is Missing.empty,
            ignore_extra=extra is Extra.ignore,
            command=_command(),
            on_progress=on_progress,
        )
    _report(folder)


def _command() -> str:
    return shlex.join(["bench", *sys.argv[1:]])


def _report(folder: Path) -> None:
    """The report of a suite folder, its main table and where it is."""
    from reports.build import build_report
    from reports.tables import to_rich

    console = terminal_console()
    with console.status("writing the report"):
        built = build_report(folder)
    console.print(to_rich(built.main, console.width))
    console.print(f"report   {built.html}", highlight=False, soft_wrap=True)
