"""Files of one local folder and one fsspec URL brought together: what changed on one side goes to the other.

Each file comes whole or not at all. Names that begin with a dot, locks and half-written files stay where they are.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bench.atomic import write_json
from bench.checkpoint import PATTERN as CHECKPOINTS
from bench.data.storage import IN_ENVIRONMENT, VERSION_FIELDS, connections, open_url, telling
from bench.errors import UserError
from bench.limits import load_json
from bench.urls import refuse_password

RECORD = ".exchange.json"
SOON = 0.3  # seconds until what is not to wait is seen: a checkpoint, the wish to stop
CURVE = "history.jsonl"
STATUS = "status.json"  # a run folder's last file: who sees it sees the files that it speaks of
WHOLE = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl")  # object stores show a file when all of it is there
LARGE = 16 * 2**20  # bytes; a larger file is not read into memory
LEFT_OUT = re.compile(r"(^|/)(\.|scratch-)|\.(tmp|partial|lock)$|^lock$")

Wanted = Callable[[str], bool]
Stamp = tuple[int, int]  # size in bytes, mtime in ns


def everything(name: str) -> bool:
    """All files of a folder."""
    return True


def check_url(url: str) -> None:
    """UserError where `--storage` cannot be this URL; nobody is asked over the network."""
    refuse_password("--storage", url, IN_ENVIRONMENT)
    if "://" not in url:
        raise UserError(f"--storage {url!r} is no URL: write s3://bucket/runs, or file:///folder; or use --runs-dir")
    open_url(url, "runs")


class Exchange:
    """`folder` and `url`. What is known to be the same on both sides stands in `folder`/.exchange.json.

    Not for two threads at once. A file has one writer at a time: the driver, or the trial that it belongs to.
    """

    def __init__(self, url: str, folder: Path):
        self.url, self.folder = url.rstrip("/"), folder
        self.system, root = open_url(self.url, "runs")
        self.root = root.rstrip("/")
        self._whole = url.split("://")[0] in WHOLE
        self._made: set[str] = set()  # folders at the URL
        # name -> [size, mtime in ns, version at the URL]
        self._same: dict[str, list] = self._read_record()

    @property
    def is_new(self) -> bool:
        """Whether this folder and this URL have never met."""
        return not self._same

    def names_there(self) -> set[str]:
        """What lies at the URL."""
        return set(self._listing())

    def pull(self, wanted: Wanted = everything) -> None:
        """Fetches what is wanted and has changed at the URL, status.json last.

        What is gone from a run that is still there (a checkpoint that was replaced) goes here too, unless it was
        changed here. UserError where the URL cannot be read.
        """
        with telling(self.url):
            listing = self._listing()
            changed = [
                name
                for name, version in listing.items()
                if wanted(name) and (self._version(name) != version or self._stamp(name) is None)
            ]
            try:
                self._each(lambda name: self._fetch(name, listing[name]), changed)
            finally:
                self._write_record()
        for name in [name for name in self._same if wanted(name) and name not in listing]:
            run, _, rest = name.partition("/")
            if rest and f"{run}/{STATUS}" in listing and self._stamp(name) == self._known(name):
                (self.folder / name).unlink()
            del self._same[name]
        self._write_record()

    def push(self, wanted: Wanted = everything, prune: bool = False) -> None:
        """Sends what is wanted and has changed here, status.json last. `prune` removes there what is gone here.

        A file that changes while it is read waits for the next call. UserError where the URL cannot be written.
        """
        stamps = self._stamps(wanted)
        changed = [name for name, stamp in stamps.items() if stamp != self._known(name)]
        sent: list[str] = []
        with telling(self.url, "written"):
            try:
                self._each(lambda name: self._send(name, stamps[name]) and sent.append(name), changed)
            finally:
                self._note(sent, stamps)
            for name in [name for name in self._same if prune and wanted(name) and self._stamp(name) is None]:
                status = f"{name.partition('/')[0]}/{STATUS}"
                if self._stamp(status) == self._known(status):  # else what is gone may be of an end not told yet
                    self.remove(name)
        self._write_record()

    def remove(self, name: str) -> None:
        """Removes a file at the URL; one that is not there is none."""
        self._same.pop(name, None)
        with telling(self.url, "written"):
            self.system.invalidate_cache()
            if self.system.exists(path := f"{self.root}/{name}"):
                self.system.rm_file(path)

    def has(self, name: str) -> bool:
        """Whether there is such a file at the URL."""
        with telling(self.url):
            self.system.invalidate_cache()
            return self.system.exists(f"{self.root}/{name}")

    def get(self, name: str) -> bytes | None:
        """The bytes of a file at the URL, which goes to no folder; None where there is none."""
        if not self.has(name):
            return None
        with telling(self.url):
            try:
                return self.system.cat_file(f"{self.root}/{name}")
            except FileNotFoundError:  # removed since
                return None

    def put(self, name: str, content: bytes) -> None:
        """Writes a file at the URL, whole or not at all."""
        with telling(self.url, "written"):
            self._write(name, lambda target: self.system.pipe_file(target, content))

    def _listing(self) -> dict[str, str]:
        """The version of every file at the URL, by its name below it."""
        with telling(self.url):
            self.system.invalidate_cache()
            return self._versions(self.system.find(self.root, detail=True).values())

    def _versions(self, found: Iterable[dict[str, Any]]) -> dict[str, str]:
        """By name, of the files among what a file system has listed."""
        below = self.root.strip("/") + "/"
        names = {info["name"].strip("/").removeprefix(below): info for info in found if info["type"] == "file"}
        # a key of an object store may hold anything
        return {
            name: _version_of(info)
            for name, info in names.items()
            if ".." not in name.split("/") and not name.startswith("/") and not LEFT_OUT.search(name)
        }

    def _versions_beside(self, names: Iterable[str]) -> dict[str, str]:
        """Of the files in the folders of `names`. Listed, for some file systems tell a single file's otherwise."""
        self.system.invalidate_cache()
        folders = {f"{self.root}/{name}".rpartition("/")[0] for name in names}
        return self._versions(info for folder in sorted(folders) for info in self.system.ls(folder, detail=True))

    def _stamps(self, wanted: Wanted) -> dict[str, Stamp]:
        """What lies here. Each status, and each checkpoint, is looked at before the files that it speaks of, which are
        as old or newer.
        """
        first = [file for pattern in (STATUS, CHECKPOINTS) for file in self.folder.glob(f"*/{pattern}")]
        names = [file.relative_to(self.folder).as_posix() for file in first]
        found = {name: self._stamp(name) for name in names if wanted(name)}
        for where, _, files in os.walk(self.folder):
            for file in files:
                name = (Path(where) / file).relative_to(self.folder).as_posix()
                if name not in found and file != STATUS and wanted(name) and not LEFT_OUT.search(name):
                    found[name] = self._stamp(name)
        return {name: stamp for name, stamp in found.items() if stamp is not None}

    def _stamp(self, name: str) -> Stamp | None:
        try:
            stat = (self.folder / name).stat()
        except OSError:
            return None
        return stat.st_size, stat.st_mtime_ns

    def _known(self, name: str) -> Stamp | None:
        """The stamp of the file here when it was the same on both sides."""
        return tuple(self._same[name][:2]) if name in self._same else None

    def _version(self, name: str) -> str | None:
        return self._same[name][2] if name in self._same else None

    def _each(self, work: Callable[[str], None], names: Sequence[str]) -> None:
        """`work` on each name, checkpoints after the curves up to them and status.json after all others; side by side
        where the file system can.
        """
        batches: list[list[str]] = [[], [], []]
        for name in names:
            batches[2 if name.endswith(STATUS) else int(fnmatch(name, f"*/{CHECKPOINTS}"))].append(name)
        for batch in batches:
            with ThreadPoolExecutor(connections(self.system), "exchange") as pool:
                list(pool.map(work, batch))

    def _fetch(self, name: str, version: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            self.system.get_file(f"{self.root}/{name}", str(partial))
            size = partial.stat().st_size
            if not version.startswith(f"{size} "):  # it has changed since it was listed, or is cut short
                version = self._versions_beside([name]).get(name, "")
                if not version.startswith(f"{size} "):
                    raise OSError(f"{name} came with {size} bytes: incomplete")
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        self._same[name] = [*self._stamp(name), version]

    def _send(self, name: str, stamp: Stamp) -> bool:
        """Whether the file as it was at `stamp` is at the URL now."""
        file = self.folder / name
        if stamp[0] > LARGE:
            self._write(name, lambda target: self.system.put_file(str(file), target))
        else:
            content = _content(file)
            # written to, or removed, since it was looked at; a curve only grows, and a checkpoint may wait for it
            if self._stamp(name) != stamp and not (content and name.endswith(CURVE)):
                return False
            self._write(name, lambda target: self.system.pipe_file(target, content))
        return self._stamp(name) == stamp

    def _write(self, name: str, write: Callable[[str], None]) -> None:
        """`write(target)` writes the file `name` at the URL, by another name where half of it could be read."""
        there = f"{self.root}/{name}"
        where = there.rpartition("/")[0]
        if self._whole:
            write(there)
            return
        if where not in self._made:
            self._make_folder(where)
        target = f"{where}/.{uuid.uuid4().hex}.tmp"
        write(target)
        self.system.mv(target, there)

    def _make_folder(self, where: str) -> None:
        """Each folder by itself: another machine may make any of them at the same time."""
        parts = where.split("/")
        for folder in ("/".join(parts[:count]) for count in range(1, len(parts) + 1)):
            self.system.invalidate_cache()
            if not folder or self.system.isdir(folder):
                continue
            try:
                self.system.mkdir(folder, create_parents=False)
            except Exception:  # each file system has its own for a folder that is there
                self.system.invalidate_cache()
                if not self.system.isdir(folder):
                    raise
        self._made.add(where)

    def _note(self, sent: Sequence[str], stamps: dict[str, Stamp]) -> None:
        """Writes down that what was sent is the same on both sides."""
        versions = self._versions_beside(sent)
        self._same |= {name: [*stamps[name], versions[name]] for name in sent if name in versions}
        self._write_record()

    def _read_record(self) -> dict[str, list]:
        """What is the same, empty where this folder was last brought together with another URL."""
        try:
            record = load_json(self.folder / RECORD)
            return record["files"] if record["url"] == self.url else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write_record(self) -> None:
        write_json(self.folder / RECORD, {"url": self.url, "files": self._same}, durable=False)


@contextmanager
def every(seconds: float, look: Callable[[], None], urgent: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Calls `look` in a thread every so many seconds, and at once when `urgent` has another value; a storage that does
    not answer is asked again.
    """
    ended = threading.Event()

    def watch() -> None:
        looked, seen = time.monotonic(), urgent()
        while not ended.wait(SOON):
            now = urgent()
            if now == seen and time.monotonic() - looked < seconds:
                continue
            with suppress(UserError, OSError):
                look()
            looked, seen = time.monotonic(), now

    thread = threading.Thread(target=watch, name="exchange", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _content(file: Path) -> bytes:
    """Nothing of a file that was removed in the meantime."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _version_of(info: dict[str, Any]) -> str:
    """Size and version of a file at a URL, as its listing tells; a replaced file has another inode where times are
    coarse.
    """
    return " ".join(str(info[field]) for field in ("size", *VERSION_FIELDS, "unique", "ino") if field in info)
