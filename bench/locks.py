"""One `bench run` at a time in a suite's folder, one process at a time in a trial's.

The kernel frees the lock of a dead holder, and who comes next removes what it has left half-written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from bench.atomic import remove_leftovers
from bench.errors import UserError

LOCK = "lock"
TUNE_FILES = ".tune-"  # begins the name of the folder that Ray Tune has while a suite runs
PATIENCE = 300.0  # seconds for the process of a killed driver to end
POLL = 0.2  # seconds
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # of a file system


def lock_file(handle: TextIO, wait: bool = True) -> None:
    """Locks an open file until it is closed, after waiting for whoever holds it.

    BlockingIOError where it is held and `wait` is False; UserError where the file system has no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        where = Path(handle.name).parent
        raise UserError(
            f"{where} is on a file system without locks ({error.strerror}): mount it with them (Lustre: -o flock), "
            "or choose another folder"
        ) from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a suite's folder. UserError naming the process that holds it already."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as handle:
        try:
            lock_file(handle, wait=False)
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
def alone_in(run_dir: Path, patience: float | None = None) -> Iterator[None]:
    """Holds a trial's folder, after waiting for a process that still works there. UserError where that does not end."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("a") as handle:
        deadline = time.monotonic() + (PATIENCE if patience is None else patience)
        while True:
            try:
                lock_file(handle, wait=False)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"another process works in {run_dir} and does not end: kill it") from None
                time.sleep(POLL)
        remove_leftovers(run_dir)
        yield
