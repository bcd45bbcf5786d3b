"""One `bench run` at a time on a suite at a --storage URL, which has no locks: the driver there gives signs of life."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from bench.errors import UserError, printable
from bench.exchange import Exchange, every

DRIVER = ".driver.json"  # at the suite's URL
BEAT = 5.0  # seconds from one sign of life to the next
SILENCE = 20.0  # seconds without one after which a driver is dead
PAUSE = 1.0  # seconds until one that has begun at the same moment is seen


@contextlib.contextmanager
def leased(exchange: Exchange) -> Iterator[None]:
    """Holds the suite at the URL for this process, which holds the suite's folder already (`bench.locks.locked`).

    UserError naming the driver that holds it. One that is silent is waited for, and taken for dead in the end.
    """
    mine = {"process": os.getpid(), "host": socket.gethostname(), "folder": str(exchange.folder.resolve())}
    mine |= {"machine": _machine(), "id": uuid.uuid4().hex}
    there = _read(exchange)
    # who had this very folder has let it go, or is dead
    if there and any(there.get(part) != mine[part] for part in ("host", "machine", "folder")):
        _wait_for_silence(exchange, there)
    _write(exchange, mine, 0)
    time.sleep(PAUSE)
    there = _read(exchange)
    if there is None or there.get("id") != mine["id"]:
        raise _in_use(exchange, there or {})
    beats, told = itertools.count(1), False

    def beat() -> None:
        nonlocal told
        mine_here = Exchange(exchange.url, exchange.folder)  # fsspec gives each thread a connection of its own
        there = _read(mine_here) or mine
        if there.get("id") == mine["id"]:
            _write(mine_here, mine, next(beats))
        elif not told:  # this machine has slept, or could not reach the URL
            told = True
            taken = f"{exchange.url} has been taken over by {_who(there)}, for it heard nothing of this one"
            print(f"warning: {taken}: stop one of the two", file=sys.__stderr__)

    try:
        with every(BEAT, beat):
            yield
    finally:
        with contextlib.suppress(UserError):  # what was left is silent, and costs the next one a wait
            if (_read(exchange) or {}).get("id") == mine["id"]:
                exchange.remove(DRIVER)


def _machine() -> str:
    """What tells this machine from another of its name, a copy of its image; a start of it from others, too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{uuid.getnode():x}"


def _wait_for_silence(exchange: Exchange, first: dict) -> None:
    told = f"{exchange.url} was last used by {_who(first)}: looking for {SILENCE:.0f} s whether it lives"
    print(told, file=sys.stderr)
    deadline = time.monotonic() + SILENCE
    while time.monotonic() < deadline:
        time.sleep(min(BEAT, SILENCE) / 5)
        now = _read(exchange)
        if now is None:
            return
        if now != first:
            raise _in_use(exchange, now)


def _in_use(exchange: Exchange, there: dict) -> UserError:
    return UserError(f"{exchange.url} is in use by {_who(there)}: wait for it, or choose another --name")


def _who(there: dict) -> str:
    process, host = there.get("process", "unknown"), there.get("host", "another machine")
    return printable(f"`bench run` of process {process} on {host}")


def _read(exchange: Exchange) -> dict | None:
    content = exchange.get(DRIVER)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # whoever can write there can write anything
        return {}
    return found if isinstance(found, dict) else {}


def _write(exchange: Exchange, mine: dict, beat: int) -> None:
    exchange.put(DRIVER, json.dumps(mine | {"beat": beat}).encode())
