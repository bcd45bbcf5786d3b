"""`bench run --storage URL`: a suite on machines that share no folder. Driver and trials exchange files through a URL.

At the URL stand <suite>/ as it is in the runs folder, and data/ with the data sets that the driver generated or copied.
The driver's runs folder stays local; a trial works in a temporary folder of its machine. Each file has one writer: the
trial for its run folder, the driver for all else.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.atomic import read_json, write_json, write_text
from bench.checkpoint import checkpoints
from bench.errors import UserError
from bench.exchange import CURVE, STATUS, Exchange, every
from bench.execute import mark_interrupted
from bench.locks import lock_file
from bench.stopping import STOP

INTERVAL = 3.0  # seconds between two looks at what has changed
LIVE = (STATUS, "progress.json", CURVE)  # what the driver reads while trials run
SUITE = "suite.json"
DATA = "data"  # in the runs folder and at the URL
TRIES = 4  # of what must not be lost: a trial's last files
PAUSE = 5.0  # seconds before the second try, doubled each time


def exchange_of(storage: str, suite_dir: Path) -> Exchange:
    """A suite's folder and its place at the URL. UserError where both hold runs that have nothing to do with each
    other.
    """
    exchange = Exchange(f"{storage.rstrip('/')}/{suite_dir.name}", suite_dir)
    if (suite_dir / SUITE).exists() and (there := exchange.get(SUITE)) is not None and _other(exchange, there):
        raise UserError(
            f"{suite_dir} and {exchange.url} both hold a suite, and neither is the other's copy: choose another "
            "--name, or remove one of them"
        )
    return exchange


def _other(exchange: Exchange, there: bytes) -> bool:
    """Whether the suite.json at the URL is not this folder's: by the ids of both, else by whether they have met."""
    ids = [_id(content) for content in ((exchange.folder / SUITE).read_bytes(), there)]
    return ids[0] != ids[1] if all(ids) else exchange.is_new


def _id(suite: bytes) -> str | None:
    try:
        return json.loads(suite)["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def bring(storage: str, suite_dir: Path, check: Callable[[], None]) -> None:
    """Fetches what the URL has of a suite, all of it; `check` may refuse it when only suite.json and the like are here.

    So a driver on a new machine goes on where another one was stopped.
    """
    exchange = exchange_of(storage, suite_dir)
    exchange.pull(of_suite)
    check()
    exchange.pull()


def of_suite(name: str) -> bool:
    """Whether a file is the suite's, not a run's."""
    return "/" not in name


@contextmanager
def following(storage: str, suite_dir: Path) -> Iterator[None]:
    """The driver's side while trials run: sends what they need, fetches what they report, at the end all of it.

    UserError where the URL cannot be read or written, before the trials and after them; what fails in between is
    tried again.
    """
    exchange = exchange_of(storage, suite_dir)
    exchange.remove(STOP)  # of a driver that was killed
    for part in _data_sets(suite_dir / SUITE, suite_dir.parent / DATA):
        Exchange(f"{storage.rstrip('/')}/{DATA}/{part}", suite_dir.parent / DATA / part).push()
    exchange.pull(lambda name: name.endswith(f"/{STATUS}"))  # of a trial that outlived its driver, and has just ended
    exchange.push()

    def look() -> None:
        exchange.push(lambda name: name == STOP)
        exchange.pull(lambda name: name.rpartition("/")[2] in LIVE)

    try:
        with every(INTERVAL, look, (suite_dir / STOP).exists):
            yield
    finally:
        exchange.remove(STOP)
        exchange.pull()
        for status in suite_dir.glob(f"*/{STATUS}"):  # whatever still says "running" was killed
            mark_interrupted(status.parent)


@contextmanager
def trial_folder(storage: str | None, suite_dir: Path, run_id: str) -> Iterator[Path]:
    """The suite's folder for one trial: without `storage` the driver's own, else one of this machine, which has the
    suite's files and what the run has been through. What the trial changes in its run goes to the URL, in the end
    all of it.
    """
    if storage is None:
        yield suite_dir
        return
    home = _home(storage)
    with tempfile.TemporaryDirectory(prefix="trial-", dir=home, ignore_cleanup_errors=True) as folder:
        here = Path(folder) / suite_dir.name
        here.mkdir()
        exchange = exchange_of(storage, here)

        def own(name: str) -> bool:
            return name.startswith(f"{run_id}/")

        exchange.pull(lambda name: of_suite(name) or own(name))
        _bring_data(storage, here, suite_dir.parent / DATA, home / DATA)
        search = any(here.glob("search-*.json"))  # a configuration is judged by the curves of the others

        def curve_of_another(name: str) -> bool:
            return name.endswith(f"/{CURVE}") and not own(name)

        if search:
            exchange.pull(curve_of_another)

        def look() -> None:
            exchange.push(own, prune=True)
            if search:
                exchange.pull(curve_of_another)
            if exchange.has(STOP):
                (here / STOP).touch()

        try:
            with every(INTERVAL, look, lambda: checkpoints(here / run_id)):
                yield here
        finally:
            _surely(lambda: exchange.push(own, prune=True))


def leave_probe(storage: str, text: str) -> Callable[[], None]:
    """Writes a file with `text` at the URL, for `problem_with`; returns what removes it, and what nodes left there."""
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "from-driver", text)
        probe = Exchange(f"{storage.rstrip('/')}/probe-{text}", Path(folder))
        probe.push()

    def remove() -> None:
        for name in probe.names_there():
            probe.remove(name)
        with suppress(OSError):  # an object store has no folders
            probe.system.rmdir(probe.root)

    return remove


def problem_with(storage: str, text: str, node: str) -> str | None:
    """Why this machine cannot exchange files through the URL, with the fix; None where it can."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            probe = Exchange(f"{storage.rstrip('/')}/probe-{text}", Path(folder))
            probe.pull()
            if not (Path(folder) / "from-driver").exists():
                return f"does not see at {storage} what the driver wrote: give --storage a URL that all nodes reach"
            write_text(Path(folder) / node, text)
            probe.push()
    except UserError as error:
        return str(error)
    return None


def outside(data: dict[str, str], suite_dir: Path) -> list[str]:
    """The data set folders that do not travel through the URL: nodes have to see them by the same path."""
    home = suite_dir.parent / DATA
    return sorted(root for root in data.values() if not Path(root).is_relative_to(home))


def _data_sets(suite_file: Path, home: Path) -> list[str]:
    """The data sets of a suite that lie in `home`, generated or copied there, by their path from it."""
    data = read_json(suite_file, "run `bench run` again")["data"].values()
    return [Path(root).relative_to(home).as_posix() for root in data if Path(root).is_relative_to(home)]


def _bring_data(storage: str, here: Path, there: Path, home: Path) -> None:
    """Fetches the data sets that lie in the driver's `there` into `home`, and tells the suite's files in `here`."""
    for part in _data_sets(here / SUITE, there):
        (home / part).mkdir(parents=True, exist_ok=True)
        with (home / f"{part.replace('/', '-')}.lock").open("a") as lock:
            lock_file(lock)  # other trials of this machine
            Exchange(f"{storage.rstrip('/')}/{DATA}/{part}", home / part).pull()
    for file in here.glob("*.json"):
        write_json(file, _moved(read_json(file, "run `bench run` again"), f"{there}/", f"{home}/"))


def _moved(value: Any, before: str, after: str) -> Any:
    """`value`, of a JSON file, with each path below `before` below `after` instead."""
    if isinstance(value, dict):
        return {key: _moved(item, before, after) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, before, after) for item in value]
    if isinstance(value, str) and value.startswith(before):
        return after + value.removeprefix(before)
    return value


def _home(storage: str) -> Path:
    """This machine's folder for what comes from the URL. UserError where it is another user's."""
    name = hashlib.sha256(storage.encode()).hexdigest()[:16]
    mine = Path(tempfile.gettempdir()) / f"boltzbench-{os.getuid()}"
    mine.mkdir(mode=0o700, parents=True, exist_ok=True)
    if mine.is_symlink() or mine.stat().st_uid != os.getuid():
        raise UserError(f"{mine} belongs to another user: remove it, or set TMPDIR")
    (mine / name).mkdir(exist_ok=True)
    return mine / name


def _surely(work: Callable[[], None]) -> None:
    for attempt in range(TRIES):
        try:
            return work()
        except UserError:
            if attempt == TRIES - 1:
                raise
            time.sleep(PAUSE * 2**attempt)
