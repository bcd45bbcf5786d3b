"""Stopping a suite between two steps: a file in its folder, which every trial sees wherever it runs."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STOP = "stop"


def stop_requested(suite_dir: Path) -> bool:
    """Whether the user wants the suite to stop."""
    return (suite_dir / STOP).exists()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is a KeyboardInterrupt, as Ctrl-C is: what is open is closed. Ignored it stays ignored."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    with _heard_by(interrupt, signal.SIGTERM):
        yield


@contextlib.contextmanager
def stoppable(suite_dir: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the trials of a suite to stop where nothing is lost; the second is a KeyboardInterrupt.

    A signal that the process was started to ignore (a shell's background) stays ignored.
    """
    file = suite_dir / STOP
    file.unlink(missing_ok=True)

    def ask(number: int, frame: Any) -> None:
        if file.exists():
            raise KeyboardInterrupt
        file.touch()
        # what a trial prints goes into its output.log, and so would this
        print("\nstopping after this step, with a checkpoint; once more stops at once", file=sys.__stderr__)

    try:
        with _heard_by(ask, signal.SIGINT, signal.SIGTERM):
            yield
    finally:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _heard_by(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """The signals go to `handler` for as long as the block lasts, where this thread may say so."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
