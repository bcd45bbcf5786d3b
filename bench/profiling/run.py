"""`bench profile`: the cases of the scopes one after the other, then the files, the tables and the MLflow run."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.atomic import write_file, write_json, write_text
from bench.environment import count_cores, describe, git_state
from bench.errors import UserError
from bench.estimate import format_seconds
from bench.profiling import report

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from bench.profiling.measure import Case, Result

STOPPED = 130
BUSY = 0.5  # processes that want to run, per core


def profile(
    scopes: Sequence[str], out: Path, quick: bool, threads: tuple[int, ...] | None, runs_dir: Path, console: Console
) -> int:
    """Measures `scopes` (modules here), writes `out` and logs it; the exit code: 0, or 130 where it was stopped.

    threads: None is each scope's own: attention 1 and all cores (quick: all), decoder and model all, harness 1, which
    is what a trial of the laptop profile has. UserError where they are more than there are cores, or none.
    """
    cores = count_cores()
    if threads and not 1 <= min(threads) <= max(threads) <= cores:
        given = ",".join(map(str, threads))
        raise UserError(f"--threads {given}: this machine has {cores} core{'s' * (cores != 1)}: give 1 to {cores}")
    out.mkdir(parents=True, exist_ok=True)
    planned = {scope: _cases(scope, quick, threads or _threads(scope, cores, quick)) for scope in scopes}
    every = [case for cases in planned.values() for case in cases]
    expected = format_seconds(sum(case.expected for case in every))
    console.print(f"{len(every)} cases, about {expected} on two free cores of a server", highlight=False)
    if (load := os.getloadavg()[0]) > BUSY * cores:
        message = f"warning: the machine was busy in the last minute (load {load:.1f} on {cores} cores): "
        print(message + "seconds will be off if something else is running", file=sys.stderr)
    write_json(out / "env.json", describe(seed=0))

    from bench.profiling.measure import Result

    found, stopped = Result(), False
    try:
        for scope, cases in planned.items():
            _measure(cases, found, console)
            frame = _write(found, out)
            console.print(report.scope_table(frame, scope))
    except KeyboardInterrupt:
        stopped = True
        if not found.rows:
            print("\nstopped before anything was measured", file=sys.stderr)
            return STOPPED
        frame = _write(found, out)
        print("\nstopped; what was measured is kept", file=sys.stderr)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if bars := report.bar_rows(frame, found.outcomes):
        console.print(report.bars_table(bars))
    console.print(f"profile  {out / 'profile.csv'}, {out / 'profile.png'}", highlight=False, soft_wrap=True)
    _track(frame, scopes, out, quick, runs_dir, stopped)
    return STOPPED if stopped else 0


def _cases(scope: str, quick: bool, threads: Sequence[int]) -> list[Case]:
    return importlib.import_module(f"bench.profiling.{scope}").cases(quick, threads)


def _threads(scope: str, cores: int, quick: bool) -> tuple[int, ...]:
    if scope == "attention" and not quick:
        return tuple(sorted({1, cores}))
    return (1,) if scope == "harness" else (cores,)


def _measure(cases: Sequence[Case], found: Result, console: Console) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(case.expected for case in cases))
        for case in cases:
            bar.update(task, description=case.title)
            start = time.perf_counter()
            result = case.run()
            found.rows += result.rows
            found.notes += result.notes
            found.outcomes += result.outcomes
            bar.advance(task, case.expected)
            if not console.is_terminal:
                seconds = time.perf_counter() - start
                console.print(f"{case.title}: {seconds:.0f} s", highlight=False, soft_wrap=True)


def _write(found: Result, out: Path) -> pd.DataFrame:
    frame = report.frame_of(found.rows)
    write_text(out / "profile.csv", report.csv_of(frame))
    picture = report.figure(frame)
    write_file(out / "profile.png", lambda handle: handle.write(picture))
    return frame


def _track(frame: pd.DataFrame, scopes: Sequence[str], out: Path, quick: bool, runs_dir: Path, stopped: bool) -> None:
    """A new MLflow run with the files; without MLflow they are where they are."""
    from bench.tracking import Tracker, initialize_store, store_uri

    runs_dir = runs_dir.resolve()
    uri = store_uri(runs_dir)
    if not initialize_store(uri, runs_dir):
        return
    git = git_state()
    tags = {"kind": "profile"} | ({"git_commit": git["commit"]} if git else {})
    params = {"scopes": ",".join(scopes), "quick": quick, "rows": len(frame)}
    tracker = Tracker(uri, f"profile {out.resolve()}", out.name, tags, params, fresh=True)
    tracker.artifacts(out / "profile.csv", out / "profile.png", out / "env.json")
    tracker.finish("KILLED" if stopped else "FINISHED")
