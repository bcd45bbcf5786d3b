"""Data sets on other storage (s3://, gs://, any fsspec URL): mirrored into a local folder and read from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from bench.atomic import write_file
from bench.data.dataset import SPLITS, find_datasets
from bench.errors import UserError
from bench.locks import lock_file
from bench.urls import refuse_password

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CONNECTIONS = 16  # files copied at once: most of a small file's time is waiting for the server
LOG = ".mirror.jsonl"
CACHE = Path("runs") / "data"
# what a listing calls the version of a file: S3, Google, Azure, SFTP, FTP, in memory
VERSION_FIELDS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "modify", "created")
CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket FSSPEC_S3_ANON=true",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
}
IN_ENVIRONMENT = (
    "give it in the environment, where the file system looks for it (FSSPEC_FTP_PASSWORD, AWS_SECRET_ACCESS_KEY, ...)"
)


def is_url(place: str | Path) -> bool:
    """True for what is to be read through fsspec, False for a path of this machine."""
    return "://" in str(place)


def local_folders(places: Sequence[str | Path], cache: Path) -> list[Path]:
    """`places` with each URL replaced by its mirror in `cache`, brought up to date behind a progress bar.

    UserError for one that holds a password.
    """
    for place in filter(is_url, places):
        refuse_password("the URL", str(place), IN_ENVIRONMENT)
    return [_mirror_with_bar(str(place), cache) if is_url(place) else Path(place) for place in places]


def datasets_at(places: Sequence[str | Path], cache: Path = CACHE) -> list[Path]:
    """The data set folders at `places`, folders or URLs: `local_folders`, then `find_datasets`. Raises UserError."""
    return find_datasets(local_folders(places, cache))


def _mirror_with_bar(url: str, cache: Path) -> Path:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from bench.terminal import terminal_console

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=terminal_console(), transient=True) as bar:
        task = bar.add_task(f"copying {url}", total=None)
        return mirror(url, cache, lambda done, total: bar.update(task, completed=done, total=total))


def mirror(url: str, cache: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Copies the data sets at `url` (one, or a folder of them) to `cache`/<protocol>/<path> and returns that folder.

    Their JSON, images and masks, and nothing else that lies there. Only what is missing, or has another size or
    version (ETag or the like) than was copied, each file whole or not at all: the same call goes on after an
    interruption. What is gone at `url` is removed. `on_progress(done, total)` counts bytes. Processes that ask at once
    take turns.

    Raises UserError where `url` cannot be read, holds no data set, or a file comes incomplete.
    """
    protocol = url.split("://")[0]
    with telling(url):
        system, root = open_url(url)
        if protocol in ("file", "local"):
            return Path(root)
        listing = _listing(system, root)
    if not listing:
        raise UserError(f"{url}: no train.json here or one level below; see docs/data.md for the layout")
    folder = cache / protocol / root.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a+", encoding="utf-8") as log:
        lock_file(log)
        copied = _copied(log)
        for name in filter(lambda name: _belongs(name.split("/")), copied.keys() - listing.keys()):
            (folder / name).unlink(missing_ok=True)
        missing = {
            name: version
            for name, version in listing.items()
            if copied.get(name) != version or not _is_whole(folder / name, version[0])
        }
        _copy(partial(_fetch, url, system, root, folder), connections(system), missing, log, on_progress)
    return folder


@contextmanager
def telling(url: str, done: str = "read") -> Iterator[None]:
    """Every storage has exceptions of its own: all become one line for the user. `done`: what is done with it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        protocol = url.split("://")[0]
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{url}: nothing is there ({text}); check the address") from None
        if isinstance(error, PermissionError) or "credential" in f"{type(error).__name__} {text}".lower():
            fix = f"set {CREDENTIALS[protocol]}" if protocol in CREDENTIALS else f"see fsspec on {protocol}://"
            raise UserError(f"{url}: access denied ({text}); {fix}") from None
        raise UserError(
            f"{url}: cannot be {done} ({type(error).__name__}: {text}); check the address and the connection"
        ) from None


def open_url(url: str, folder: str = "set") -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the path in there. UserError for a protocol without one, or no path; `folder` is
    the name in its example of one.
    """
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    protocol = url.split("://")[0]
    if protocol not in known_implementations:
        raise UserError(f"{url}: unknown protocol {protocol}://; give a folder or a URL such as s3://bucket/{folder}")
    try:
        system, root = url_to_fs(url)
    except ImportError as error:
        package = known_implementations[protocol]["class"].split(".")[0]
        fix = error if package == "fsspec" else f"pip install {package}"
        raise UserError(f"{url}: a package for {protocol}:// is missing: {fix}") from None
    if ".." in root.split("/") or not root.strip("/"):
        what = "a data set" if folder == "set" else f"the {folder}"
        raise UserError(f"{url}: name the folder of {what}, such as {protocol}://bucket/{folder}")
    return system, root


def _listing(system: AbstractFileSystem, root: str) -> dict[str, list]:
    """[size in bytes, version] of every file of the layout below `root`, by its path from there."""
    found = {}
    for path, info in system.find(root, detail=True).items():
        name = path.removeprefix(root).strip("/")
        if info["type"] == "file" and _belongs(name.split("/")):
            version = next((str(info[field]) for field in VERSION_FIELDS if info.get(field)), "")
            found[name] = [info["size"], version]
    return found


def _belongs(parts: Sequence[str]) -> bool:
    """Whether a path is of the layout, in a data set or one level below a folder of data sets."""
    if not {"", ".", ".."}.isdisjoint(parts):  # a key of an object store may hold anything
        return False
    files, folders = [f"{split}.json" for split in SPLITS], [*SPLITS, *(f"{split}_mask" for split in SPLITS)]
    return any(below[0] in (files if len(below) == 1 else folders) for below in (parts, parts[1:]) if below)


def _copied(log: TextIO) -> dict[str, list]:
    """What was copied before, as `_listing` has it; a line that a crash cut short does not count."""
    log.seek(0)
    copied = {}
    for line in log:
        try:
            name, version = json.loads(line)
        except ValueError:
            continue
        copied[name] = version
    return copied


def _is_whole(file: Path, size: int | None) -> bool:
    return file.is_file() and size in (None, file.stat().st_size)


def connections(system: AbstractFileSystem) -> int:
    """How many files at once: one where the file system has a single connection, which threads must not share."""
    return CONNECTIONS if system.async_impl else 1


def _copy(
    fetch: Callable[[str, int | None], int],
    count: int,
    missing: dict[str, list],
    log: TextIO,
    on_progress: Callable[[int, int], None],
) -> None:
    done, total = 0, sum(size or 0 for size, _ in missing.values())
    with ThreadPoolExecutor(count, "mirror") as pool:
        running = {pool.submit(fetch, name, size): name for name, (size, _) in missing.items()}
        try:
            for future in as_completed(running):
                done += future.result()
                name = running[future]
                log.write(f"\n{json.dumps([name, missing[name]])}\n")  # begins a line even after one cut short
                log.flush()
                on_progress(done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(url: str, system: AbstractFileSystem, root: str, folder: Path, name: str, size: int | None) -> int:
    """Copies one file; its size in bytes."""
    with telling(url):
        content = system.cat_file(f"{root.rstrip('/')}/{name}")
    if size is not None and len(content) != size:
        raise UserError(f"{url}: {name} came with {len(content)} of {size} bytes; run the same command again")
    write_file(folder / name, lambda handle: handle.write(content), durable=False)
    return len(content)
