"""Live progress of a suite: reads the run folders twice a second, so it shows any executor's trials alike."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from bench.estimate import format_seconds, schedule, seed_by_seed
from bench.execute import run_state
from bench.spec import RunSpec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TICK = 0.5  # seconds between two looks at the folders
PLAIN_INTERVAL = 30.0  # seconds between two lines of a trial where there is no terminal
DONE = ("finished", "failed")
PACE_AFTER = 30.0  # seconds of a phase until its pace is believed
PREDICT_SHARE = 0.1  # of a trial's time is taken to follow its training, where nothing better is known


@dataclass
class TrialState:
    """What the folders say of one trial. Times in seconds; `left` is None where nothing can be said."""

    spec: RunSpec
    state: str  # waiting, running, finished, failed, interrupted
    phase: str = ""
    step: int = 0
    total: int = 0
    left: float | None = None
    training: float | None = None  # all of it, by its pace until now
    val_dice: float | None = None
    seconds: float | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """Method, backbone, seed."""
        return " ".join(part for part in (self.spec.row, self.spec.backbone, f"seed {self.spec.seed}") if part != "-")


def read_trial(spec: RunSpec, suite_dir: Path, expected: float, now: float) -> TrialState:
    """Reads one run folder. `expected` is the estimate in seconds, used until the trial's own pace is
    known.
    """
    run_dir = suite_dir / spec.run_id
    status = run_state(run_dir)
    state = {"missing": "waiting", "interrupted": "waiting"}.get(status["state"], status["state"])
    trial = TrialState(spec, state, error=status.get("error"), seconds=status.get("seconds"), left=expected)
    try:
        progress = json.loads((run_dir / "progress.json").read_text(encoding="utf-8"))
        trial.val_dice = progress.get("metrics", {}).get("val_dice")
    except (OSError, ValueError):
        progress = None
    if state in DONE:
        trial.left = 0.0
    elif state == "running" and progress:
        trial.phase, trial.step, trial.total = progress["phase"], progress["step"], progress["total"]
        trial.seconds = now - progress["started"]
        trial.left = time_left(progress, expected, now)
        trial.training = training_time(progress)
    return trial


def time_left(progress: dict, expected: float, now: float) -> float:
    """Seconds a running trial still needs: by the pace of its phase, by the estimate while it is young. What it waits
    for a core is not known.
    """
    if progress["phase"] == "waiting":
        return expected
    rest = max(expected - (now - progress["started"]), 0.0)
    pace, spent = pace_of_phase(progress)
    if pace is None:
        return rest
    # counts down between two writes of progress.json, too
    by_pace = max((progress["total"] - progress["step"]) * pace - (now - progress["updated"]), 0.0)
    if not progress["phase"].startswith(("train", "expert")):
        return by_pace
    by_pace += PREDICT_SHARE * expected
    trust = min(1.0, spent / PACE_AFTER)
    return trust * by_pace + (1 - trust) * rest


def pace_of_phase(progress: dict) -> tuple[float | None, float]:
    """Seconds a step of the phase takes, None before there are three of them, and seconds spent on it."""
    done = progress["step"] - progress["phase_first_step"]
    spent = progress["updated"] - progress["phase_started"]
    return (spent / done if done >= 3 and spent > 0 else None), spent


def training_time(progress: dict) -> float | None:
    """Seconds from the first step to the last at the pace until now; None for one that is young or does not train."""
    pace, spent = pace_of_phase(progress)
    if progress["phase"] != "train" or pace is None or spent < PACE_AFTER:
        return None
    return progress["total"] * pace


def suite_left(trials: Sequence[TrialState], lane_count: int) -> float:
    """Seconds until the last trial ends, running ones first, the waiting ones on the lanes that come free."""
    running = [trial.left or 0.0 for trial in trials if trial.state == "running"]
    waiting = [(trial.spec.seed, trial.left or 0.0) for trial in trials if trial.state == "waiting"]
    in_order = seed_by_seed(waiting, itemgetter(0), itemgetter(1))
    return schedule([*running, *(seconds for _, seconds in in_order)], lane_count)


class Display:
    """Shows the trials while they run: a context manager with a thread of its own."""

    def __init__(
        self,
        console: Console,
        suite_dir: Path,
        specs: Sequence[RunSpec],
        expected: dict[str, float],
        lane_count: int,
        title: str,
    ):
        """`expected`: run id -> estimated seconds; `specs` in the order shown."""
        self.console, self.suite_dir, self.specs = console, suite_dir, list(specs)
        self.expected, self.lane_count, self.title = expected, lane_count, title
        self.started = time.time()
        self._paces: dict[str, float] = {}  # of trials that trained: run id -> what it takes over what was estimated
        self._told: dict[str, tuple[str, float]] = {}  # plain lines: run id -> state and when
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="display", daemon=True)

    def __enter__(self) -> Display:
        """Starts to show."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Shows the last state and stops."""
        self._stop.set()
        self._thread.join()

    def trials(self) -> list[TrialState]:
        """The state of every trial now. One that cannot tell yet is taken to need as much more than its estimate as the
        others do: a machine is slower or faster than the one that was measured for all of them.
        """
        now = time.time()
        pace = statistics.median(self._paces.values()) if self._paces else 1.0
        trials = [read_trial(spec, self.suite_dir, pace * self.expected[spec.run_id], now) for spec in self.specs]
        for trial in trials:
            if trial.training is not None:
                estimate = (1 - PREDICT_SHARE) * self.expected[trial.spec.run_id]
                self._paces[trial.spec.run_id] = trial.training / estimate
        return trials

    def _watch(self) -> None:
        if not self.console.is_terminal:
            while not self._stop.wait(TICK):
                self.print_lines(self.trials())
            self.print_lines(self.trials())
            return
        from rich.live import Live

        # redirect off: it would swap sys.stdout under the trials of the local executor
        with Live(console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
            while not self._stop.wait(TICK):
                live.update(self.table(self.trials()), refresh=True)
            live.update(self.table(self.trials()), refresh=True)

    def print_lines(self, trials: Sequence[TrialState]) -> None:
        """One line per trial on each change of its state, and every 30 s while it runs; with a trial's end, how far the
        suite is.
        """
        now = time.time()
        done = sum(trial.state in DONE for trial in trials)
        for trial in trials:
            state, when = self._told.get(trial.spec.run_id, ("waiting", 0.0))
            told = trial.state == state and (state != "running" or now - when < PLAIN_INTERVAL)
            if told or trial.state == "waiting":
                continue
            self._told[trial.spec.run_id] = (trial.state, now)
            line = plain_line(trial)
            if trial.state in DONE and done < len(trials):
                line += f" ({done} of {len(trials)} trials; about {self._suite_left(trials)} left)"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _suite_left(self, trials: Sequence[TrialState]) -> str:
        return format_seconds(suite_left(trials, self.lane_count))

    def table(self, trials: Sequence[TrialState]) -> Table:
        """All trials and the suite's time left, for the terminal."""
        from rich import box
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        done = sum(trial.state in DONE for trial in trials)
        spent = time.time() - self.started
        caption = f"{done}/{len(trials)} trials, {format_seconds(spent)} so far"
        caption += f", about {self._suite_left(trials)} left" if done < len(trials) else ""
        table = Table(title=self.title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left")
        for header in ("method", "backbone", "seed", "phase", ""):
            table.add_column(header, no_wrap=True)
        for header in ("step", "time left", "val Dice"):
            table.add_column(header, justify="right", no_wrap=True)
        colours = {"finished": "green", "failed": "red", "running": "cyan", "waiting": "dim"}
        for trial in trials:
            finished = trial.state == "finished"
            running = trial.state == "running"
            bar = ProgressBar(total=trial.total or 1, completed=trial.step if running else int(finished), width=20)
            if finished:
                bar = ProgressBar(total=1, completed=1, width=20)
            phase = (trial.phase or "start") if running else trial.state
            time_text = format_seconds(trial.left or 0.0) if trial.state in ("running", "waiting") else ""
            table.add_row(
                trial.spec.row,
                trial.spec.backbone,
                str(trial.spec.seed),
                f"[{colours.get(trial.state, 'white')}]{phase}[/]",
                bar,
                f"{trial.step}/{trial.total}" if running and trial.total else "",
                time_text,
                "" if trial.val_dice is None else f"{100 * trial.val_dice:.1f}",
            )
        return table


def plain_line(trial: TrialState) -> str:
    """One trial in one line, for a log file."""
    dice = "" if trial.val_dice is None else f", val Dice {100 * trial.val_dice:.1f}"
    if trial.state == "running":
        where = f"{trial.phase} {trial.step}/{trial.total}" if trial.total else "start"
        return f"{trial.name}: {where}, about {format_seconds(trial.left or 0.0)} left{dice}"
    took = f" after {format_seconds(trial.seconds)}" if trial.seconds is not None else ""
    error = f": {trial.error}" if trial.error else ""
    return f"{trial.name}: {trial.state}{took}{dice}{error}"
