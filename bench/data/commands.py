"""The commands of `bench data`. Each imports what it needs when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.errors import UserError
from bench.terminal import terminal_console, text_table

data_app = typer.Typer(help="Look at data sets: check, stats, preview.", no_args_is_help=True, rich_markup_mode=None)
Folders = Annotated[
    list[Path],
    typer.Argument(help="Data set folders (with train.json), or folders of such.", metavar="DIR..."),
]


@data_app.command()
def check(folders: Folders) -> None:
    """Look for every problem of data sets at once: exit code 2 and a table of them, 0 where there is none.

    \b
    Example:
      bench data check data/openkbp data/idrid
    """
    from rich.progress import Progress

    from bench.data.check import check_datasets
    from bench.data.dataset import find_datasets
    from bench.plan import show_problems

    console = terminal_console()
    found = find_datasets(folders)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reading images and masks", total=None)
        problems = check_datasets(found, lambda done, total: bar.update(task, completed=done, total=total))
    if problems:
        show_problems(problems, console)
        raise typer.Exit(2)
    console.print(f"no problems in {len(found)} data set{'s' * (len(found) != 1)}: {', '.join(p.name for p in found)}")


@data_app.command()
def stats(folders: Folders) -> None:
    """Print the objects of data sets with their sizes (the columns of the paper's Table 9).

    \b
    Example:
      bench data stats data/openkbp
    """
    from bench.data.dataset import find_datasets, load_dataset
    from bench.data.stats import size_table

    datasets = [load_dataset(folder) for folder in find_datasets(folders)]
    frame = size_table(datasets)
    rows = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in frame.values.tolist()]
    table = text_table([str(column) for column in frame.columns], rows)
    phantom = [dataset.name for dataset in datasets if dataset.phantom]
    table.title = f"object sizes (phantom: {', '.join(phantom)})" if phantom else "object sizes"
    terminal_console().print(table)


@data_app.command()
def preview(
    folder: Annotated[Path, typer.Argument(help="A data set folder.", metavar="DIR")],
    out: Annotated[Path | None, typer.Option(help="The PNG to write; default: <data set>-preview.png here.")] = None,
    count: Annotated[int, typer.Option(help="How many images.", min=1, max=400)] = 12,
) -> None:
    """Draw a sheet of images with their masks outlined.

    \b
    Example:
      bench data preview data/openkbp --count 20 --out openkbp.png
    """
    from bench.data.dataset import find_datasets
    from bench.data.preview import preview as draw

    found = find_datasets([folder])
    if len(found) > 1:
        raise UserError(f"{folder} holds {len(found)} data sets: name one of {', '.join(p.name for p in found)}")
    print(draw(found[0], out or Path(f"{found[0].name}-preview.png"), count))
