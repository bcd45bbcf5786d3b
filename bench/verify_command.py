"""`bench verify`: is a run still what its records say?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.errors import UserError, printable
from bench.options import RunsDir
from bench.terminal import BarLog, progress_bar, terminal_console, text_table

if TYPE_CHECKING:
    from rich.console import Console

    from bench.verify import Verified

SHOWN = 5  # differing values of a run


def verify(
    name: Annotated[
        str,
        typer.Argument(
            help="A run's folder, the beginning of its name under --runs-dir, or a suite's name or folder for all its "
            "runs.",
            metavar="RUN",
        ),
    ],
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write every difference into this file, too.", metavar="FILE", dir_okay=False),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Predict a finished run's test split again from its weights, and compare with its records and masks.

    Every column but the seconds is compared, bit for bit, and every mask; nothing is trained, and nothing is written
    into the run's folder. On the machine and with the packages of the run all must be equal; a line names what is
    not as it was then. Weights whose bytes have changed since the run ended are told even if no mask shows it.

    \b
    Exit codes: 0 all equal, 1 something differs, 2 it cannot be verified (data or weights are gone, another split).

    \b
    Examples:
      bench verify main
      bench verify main/boltzformer
      bench verify runs/main/sam-hiera_xt-seed0-94d66a3788 --json differences.json
    """
    from bench.atomic import write_json
    from bench.predict_image import find_run
    from bench.verify import runs_of, verify_run

    folder = runs_dir / name if (runs_dir / name / "suite.json").is_file() else Path(name)
    single = not (folder / "suite.json").is_file()
    todo, passed = ([find_run(name, runs_dir)], {}) if single else runs_of(folder)
    console = terminal_console()
    for run_id, reason in passed.items():
        _line(console, "passed over", f"{run_id}: {reason}")
    if not todo:
        raise UserError(f"{folder} has no run that was made here: there is nothing to verify")
    verified: list[Verified] = []
    unverified: dict[str, str] = {}
    with progress_bar(console, "predicting again") as on_progress:
        for number, run_dir in enumerate(todo):
            try:
                verified.append(verify_run(run_dir, BarLog(on_progress, number, len(todo))))
            except UserError as error:
                if single:
                    raise
                unverified[run_dir.name] = str(error)
    for run in verified:
        _show(run, console)
    for reason in unverified.values():
        _line(console, "not verified", reason)
    if json_file is not None:
        write_json(json_file, {"runs": [_as_json(run) for run in verified], "unverified": unverified})
    raise typer.Exit(1 if any(not run.equal for run in verified) else 2 if unverified else 0)


def _show(run: Verified, console: Console) -> None:
    if run.warnings:
        _line(console, "warning", f"{run.run_dir.name} was made with {'; '.join(run.warnings)}")
    if run.equal:
        _line(console, "equal", f"{run.run_dir.name}: {run.rows:,} records and masks, bit for bit")
        return
    what = f"{run.unequal:,} of {run.rows:,} masks differ, by up to {run.dice:.2f} points of Dice"
    _line(console, "different", f"{run.run_dir.name}: {what}")
    for file in run.changed:
        _line(console, "", f"{run.run_dir / file} has other bytes than when the run ended")
    if run.differences:
        rows = [[d.dataset, d.image_id, d.object, d.column, d.stored, d.now] for d in run.differences[:SHOWN]]
        console.print(text_table(["data set", "image", "object", "column", "stored", "now"], rows))
        if (rest := len(run.differences) - SHOWN) > 0:
            _line(console, "", f"and {rest:,} more values")


def _as_json(run: Verified) -> dict[str, Any]:
    return asdict(run) | {"run_dir": str(run.run_dir), "equal": run.equal}


def _line(console: Console, label: str, text: str) -> None:
    console.print(f"{label:12} {printable(' '.join(text.split()))}", highlight=False, markup=False, soft_wrap=True)
