"""One `bench run` at a time in a suite's folder, one process at a time in a trial's.


The kernel frees the lock of a dead holder, and who comes next removes what it has left half-written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from bench.atomic import remove_leftovers
from bench.errors import UserError

LOCK = "lock"
TUNE_FILES = ".tune-"  # begins the name of the folder that Ray Tune has while a suite runs
PATIENCE = 300.0  # seconds for the process of a killed driver to end
POLL = 0.2  # seconds


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a suite's folder. UserError naming the process that holds it already."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise UserError(
                f"{folder} is in use by `bench run` of process {holder}: wait for it, or choose another --name"
            ) from None
        handle.truncate(0)
        handle.write(f"{os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
        remove_leftovers(folder)
        for left in folder.glob(f"{TUNE_FILES}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextlib.contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Holds a trial's folder, after waiting for a process that still works there. UserError where that does not end."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("a") as handle:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"another process works in {run_dir} and does not end: kill it") from None
                time.sleep(POLL)
        remove_leftovers(run_dir)
        yield
