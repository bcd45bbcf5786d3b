"""`bench archive`: a run kept for good, in a folder of a few megabytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.options import RunsDir
from bench.terminal import terminal_console


def archive(
    name: Annotated[str, typer.Argument(help="Name under the runs folder, or a folder.", metavar="NAME|DIR")],
    out: Annotated[
        Path, typer.Argument(help="The archive's folder, new or of an earlier `bench archive`.", metavar="FOLDER")
    ],
    masks: Annotated[
        bool, typer.Option("--masks", help="The predicted masks too, for the pictures of the report.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Keep what a report needs of a run: records, curves, specs, environments and splits; no weights, logs or masks.

    The folder is small enough for a repository. `bench report FOLDER` writes all tables and figures from it without the
    data (pictures of cases need data and masks). Copied under the runs folder, the same `bench run` goes on with it:
    what is finished is not run again. Paths of data and weights are cut to their last part. An archive is replaced
    only by one that has all of its finished runs.

    \b
    Examples:
      bench archive main results/main
      bench report results/main
    """
    from bench.archive import archive_suite
    from bench.suite_folder import find_suite

    kept = archive_suite(find_suite(name, runs_dir), out, masks)
    runs = f"{kept.runs} runs" if kept.finished == kept.runs else f"{kept.finished} of {kept.runs} runs finished"
    console = terminal_console()
    console.print(f"archive  {kept.folder} ({runs}, {kept.size / 2**20:.1f} MiB)", highlight=False, soft_wrap=True)
