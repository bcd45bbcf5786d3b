"""`interface.Log` on files: progress.json for the live display, history.jsonl for the curves, and the
tracker.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from bench.atomic import write_json, write_text
from bench.stopping import stop_requested

PROGRESS_INTERVAL = 1.0  # seconds between two writes of progress.json
STOP_INTERVAL = 0.3  # seconds between two looks at whether to stop


class MetricSink(Protocol):
    """Where the points of the curves go besides the file; `bench.tracking.Tracker` is one."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """One point per value at `step`."""


def read_history(file: Path) -> Iterator[tuple[str, dict]]:
    """The lines of a history.jsonl that can be read, each with its content; nothing where there is no file."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # torn, being written, or anybody's
            continue
        yield line, row


class RunLog:
    """Implements `interface.Log` for one run folder.

    progress.json: {"phase", "step", "total", "started" (of the trial), "phase_started", "phase_first_step" (both of the
    phases that count on, as nnU-Net's "expert 1/7 liver" and "expert 2/7 spleen"), "updated" (Unix seconds), "metrics"
    (the last value of each), "best_val_dice"}.
    history.jsonl: one object per line, {"step", "time" (seconds that the trial has run, earlier starts
    of which it goes on included), name: value, ...}.
    """

    def __init__(self, run_dir: Path, tracker: MetricSink | None = None):
        self.run_dir = run_dir
        self.tracker = tracker
        self.started = time.time()
        self.latest: dict[str, float] = {}
        self.best_val_dice: float | None = None
        self._phase: tuple[str, int, float] = ("start", 0, self.started)  # name, first step, when
        self._written = self._looked = 0.0
        self._progress = ("start", 0, 0)
        run_dir.mkdir(parents=True, exist_ok=True)
        self._history = run_dir / "history.jsonl"
        self._before = 0.0  # seconds that earlier starts have run, up to where this one goes on
        self._seen = self._read_back()
        self._appended = False  # has this start of the trial written a line yet

    def progress(self, phase: str, step: int, total: int) -> None:
        """Writes progress.json, at most once a second, and always where a phase begins or ends.

        KeyboardInterrupt where the user has asked the suite to stop: a place that every method passes often, and where
        none is in the middle of a step.
        """
        now = time.time()
        if now - self._looked >= STOP_INTERVAL:
            self._looked = now
            if stop_requested(self.run_dir.parent):
                raise KeyboardInterrupt
        new_phase = phase != self._phase[0]
        if new_phase:
            counts_on = _kind(phase) == _kind(self._phase[0]) and total == self._progress[2]
            self._phase = (phase, *(self._phase[1:] if counts_on else (step, now)))
        self._progress = (phase, step, total)
        if new_phase or step >= total or now - self._written >= PROGRESS_INTERVAL:
            self._write(now)

    def metrics(self, step: int, **values: float) -> None:
        """Appends a line to history.jsonl and hands it to the tracker.

        A restarted trial that begins at an earlier step than the file ends with has thrown its former steps away:
        so are their lines. A value that the file already holds for this step is dropped: no curve has two at one step.
        """
        step = int(step)
        if not self._appended:
            self._forget_from(step)
            self._appended = True
        known = self._seen.setdefault(step, set())
        numbers = {name: float(value) for name, value in values.items()}
        self._remember(numbers)
        fresh = {name: value for name, value in numbers.items() if name not in known}
        if not fresh:
            return
        known.update(fresh)
        # JSON has no NaN; a diverged loss is a null that readers see as a gap
        finite = {name: value if math.isfinite(value) else None for name, value in fresh.items()}
        line = json.dumps({"step": step, "time": round(self._before + time.time() - self.started, 3), **finite})
        with self._history.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
        if self.tracker is not None:
            points = {name: value for name, value in fresh.items() if math.isfinite(value)}
            if points:
                self.tracker.log(step, points)
        self._write(time.time())

    def _remember(self, numbers: dict[str, float]) -> None:
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        self.latest.update(finite)
        dice = finite.get("val_dice")
        if dice is not None:
            self.best_val_dice = dice if self.best_val_dice is None else max(self.best_val_dice, dice)

    def _write(self, now: float) -> None:
        phase, step, total = self._progress
        _, first_step, phase_started = self._phase
        self._written = now
        state = {
            "phase": phase,
            "step": step,
            "total": total,
            "started": self.started,
            "phase_started": phase_started,
            "phase_first_step": first_step,
            "updated": now,
            "metrics": self.latest,
            "best_val_dice": self.best_val_dice,
        }
        write_json(self.run_dir / "progress.json", state, durable=False)

    def _forget_from(self, step: int) -> None:
        """Takes the lines of `step` and later ones out of the file, and goes on where the rest of it ends."""
        if not self._seen:
            return
        rows = [(line, row) for line, row in read_history(self._history) if row["step"] < step]
        times = [row["time"] for _, row in rows if isinstance(row.get("time"), int | float)]
        self._before = max(times, default=0.0)
        if not any(known >= step for known in self._seen):
            return
        kept = [line for line, _ in rows]
        write_text(self._history, "".join(f"{line}\n" for line in kept))
        self._seen = {known: names for known, names in self._seen.items() if known < step}

    def _read_back(self) -> dict[int, set[str]]:
        """Which values of which step the file holds. A torn last line (killed while writing) is cut off."""
        seen: dict[int, set[str]] = {}
        if not self._history.exists():
            return seen
        data = self._history.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self._history.open("r+b") as handle:
                handle.truncate(len(whole))
        for _, row in read_history(self._history):
            names = {name for name in row if name not in ("step", "time")}
            seen.setdefault(row["step"], set()).update(names)
            self._remember({name: row[name] for name in names if isinstance(row[name], (int, float))})
        return seen


def _kind(phase: str) -> str:
    return phase.split(" ")[0]
