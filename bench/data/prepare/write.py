"""Pictures into a data set folder: whole scans only, side by side in workers, going on where it was stopped.

A scan is first written to <folder>/.unfinished/<scan>, which gets that name when it is complete. When all scans are
there, their files are moved to train/, train_mask/, test/ and test_mask/ and the JSON files and manifest.json written.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from bench.atomic import read_json, write_json
from bench.data.dataset import SPLITS, inside
from bench.data.prepare.recipe import VERSION, Options, Picture, pictures
from bench.data.prepare.volume import Volume
from bench.errors import UserError
from bench.locks import lock_file

MANIFEST, UNFINISHED, RECORD = "manifest.json", ".unfinished", "scan.json"


@dataclass(frozen=True)
class Unit:
    """What is written whole or not at all: a scan, or the images of one patient.

    `files` are all it is made from; `pictures` raises UserError for what cannot be read.
    """

    id: str  # unique in the data set
    patient: str
    split: str  # "train" or "test"
    files: tuple[Path, ...]
    pictures: Callable[[], Iterable[Picture]]


@dataclass
class Written:
    """What came of a data set. skipped: unit or volume -> reason; found: how many units had been written before."""

    folder: Path
    found: int = 0
    images: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    masks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    units: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    skipped: dict[str, str] = field(default_factory=dict)


def units_of(volumes: Sequence[Volume], dataset: str, options: Options) -> list[Unit]:
    """One unit per volume, of its pictures by the recipe."""
    return [
        Unit(f"{v.id}_{v.modality}_{v.site}", v.patient, v.split, v.files, partial(pictures, v, dataset, options))
        for v in volumes
    ]


def write_dataset(
    folder: Path,
    units: Sequence[Unit],
    source: Path,
    settings: dict[str, Any],
    left_out: dict[str, str],
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Writes `units` into `folder` in the BiomedParse layout, with manifest.json.

    Units that an earlier call wrote from the same files are kept; `settings` (JSON values) must be that call's.
    `left_out` (what is not in `units` -> reason) goes into the manifest. `on_progress` gets (done, total) units.
    Nothing but the order of the work depends on `workers`.

    Raises UserError where `folder` holds something else, another call writes it, or no unit could be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unit in units:  # each is written in a folder of its name, and some names are a patient's in somebody's JSON
        if inside(folder, unit.id).parent != folder:
            raise UserError(f"{source}: {ascii(unit.id)[:100]} cannot be the name of a folder: rename the patient")
    with _locked(folder):
        manifest = _open(folder, {"recipe": VERSION, **settings}) | {"source": str(source.resolve())}
        kept = {u.id: found for u in units if (found := _finished(folder, manifest, u, source)) is not None}
        _forget(folder, manifest, [id for id in manifest["volumes"] if id not in kept])
        records, skipped = dict(kept), dict(left_out)
        todo = [unit for unit in units if unit.id not in kept]
        for done, (unit, record, reason) in enumerate(_work(todo, folder / UNFINISHED, source, workers), start=1):
            if record is None:
                skipped[unit.id] = reason
            else:
                records[unit.id] = record
            if on_progress is not None:
                on_progress(len(kept) + done, len(units))
        if not records:
            why = next(iter(skipped.values()), "there was none")
            raise UserError(f"{source}: nothing could be prepared; the first reason: {why}")
        manifest |= {"volumes": {id: records[id] for id in sorted(records)}, "skipped": dict(sorted(skipped.items()))}
        _finish(folder, manifest)
    return _summary(folder, manifest, len(kept))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        try:
            lock_file(lock, wait=False)
        except BlockingIOError:
            raise UserError(f"{folder} is being written by another 'bench data prepare': wait for it") from None
        yield


def _open(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an earlier call or a new one."""
    file = folder / MANIFEST
    if not file.exists():
        if any(path.name != ".lock" for path in folder.iterdir()):
            raise UserError(f"{folder} holds files but no {MANIFEST}: name another --out or empty the folder")
        manifest = {"settings": settings, "volumes": {}, "skipped": {}}
        write_json(file, manifest)
        return manifest
    manifest = read_json(file, "delete the folder and prepare it again")
    before = manifest["settings"]
    for name, value in settings.items():
        if before.get(name) != value:
            was = f"{name} {before.get(name)}, now {value}"
            raise UserError(f"{folder} was prepared differently ({was}): name another --out or delete the folder")
    return manifest


def _finished(folder: Path, manifest: dict[str, Any], unit: Unit, source: Path) -> dict[str, Any] | None:
    """The record of `unit` if it was written, whole, from the files as they are now."""
    record = manifest["volumes"].get(unit.id)
    if record is None:
        file = folder / UNFINISHED / unit.id / RECORD
        record = read_json(file, "delete it") if file.exists() else None
    if record is None or (record["patient"], record["split"]) != (unit.patient, unit.split):
        return None
    files = {_name(file, source): file for file in unit.files}
    if files.keys() != record["files"].keys():
        return None
    return record if all(_unchanged(file, record["files"][name]) for name, file in files.items()) else None


def _unchanged(file: Path, known: dict[str, Any]) -> bool:
    """By size and time of change; where only the time differs, by content."""
    if not file.is_file():
        return False
    state = file.stat()
    if state.st_size != known["bytes"]:
        return False
    return state.st_mtime_ns == known["mtime_ns"] or sha256_of_file(file) == known["sha256"]


def _forget(folder: Path, manifest: dict[str, Any], ids: Sequence[str]) -> None:
    """Takes units out of a data set; it has no train.json until it is finished again."""
    if not ids:
        return
    for split in SPLITS:
        (folder / f"{split}.json").unlink(missing_ok=True)
    files = [file for id in ids for file in _files(folder, manifest["volumes"].pop(id))]
    write_json(folder / MANIFEST, manifest)
    for file in files:
        file.unlink(missing_ok=True)


def _files(folder: Path, record: dict[str, Any]) -> Iterator[Path]:
    for image in record["images"]:
        yield inside(folder, f"{record['split']}/{image['file']}")
        yield from (inside(folder, f"{record['split']}_mask/{mask['file']}") for mask in image["masks"])


def _work(
    units: Sequence[Unit], staging: Path, source: Path, workers: int
) -> Iterator[tuple[Unit, dict[str, Any] | None, str]]:
    """(unit, its record or None, why None) of each unit, in the order in which they are done."""
    if workers == 1 or len(units) < 2:
        yield from ((unit, *_write_unit(unit, staging, source)) for unit in units)
        return
    # spawned, not forked: threads of libraries do not survive a fork
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(units)), spawn, initializer=_end_with_parent) as pool:
        futures = {pool.submit(_write_unit, unit, staging, source): unit for unit in units}
        try:
            for future in as_completed(futures):
                yield futures[future], *future.result()
        except BrokenProcessPool:
            raise UserError("a worker was killed, as a rule for want of memory: try fewer --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker would outlive a killed parent and write beside the next call. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_unit(unit: Unit, staging: Path, source: Path) -> tuple[dict[str, Any] | None, str]:
    """Writes a unit into `staging`: (record, "") or (None, why it was skipped)."""
    temporary, final = staging / f"{unit.id}.tmp", staging / unit.id
    for leftover in (temporary, final):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        files = {_name(file, source): _fingerprint(file) for file in unit.files}
        # the sums of BLAS, and with them single grey levels, depend on its threads; workers are the parallel part
        with threadpool_limits(1):
            images = [_write_picture(picture, temporary) for picture in unit.pictures()]
    except UserError as error:
        shutil.rmtree(temporary)
        return None, str(error)
    except OSError as error:
        shutil.rmtree(temporary)
        if error.filename is None or Path(error.filename) not in unit.files:
            raise
        return None, f"{error.filename} cannot be read ({error.strerror})"
    if not images:
        shutil.rmtree(temporary)
        return None, "no object in it"
    record = {"patient": unit.patient, "split": unit.split, "files": files, "images": images}
    write_json(temporary / RECORD, record, durable=False)
    temporary.rename(final)
    return record, ""


def _write_picture(picture: Picture, folder: Path) -> dict[str, Any]:
    """Saves image and masks as PNG: their names, sizes, areas in pixels and sentences."""
    height, width = picture.image.shape[:2]
    image = f"{picture.stem}.png"
    _save(picture.image, folder / "image" / image)
    masks = []
    for name, mask in picture.masks.items():
        file = f"{picture.stem}_{name.replace(' ', '+')}.png"
        if Path(file).name != file:
            raise UserError(f"{picture.stem}: {ascii(name)[:100]} cannot be part of a file name: rename the object")
        _save(mask.astype(np.uint8) * 255, folder / "mask" / file)
        row = {"object": name, "file": file, "area": int(mask.sum()), "sentences": list(picture.sentences[name])}
        masks.append(row)
    return {"file": image, "height": height, "width": width, "masks": masks}


def _save(array: np.ndarray, file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(file, compress_level=4)  # as small as the default 6, in half the time


def _finish(folder: Path, manifest: dict[str, Any]) -> None:
    """Moves what is complete to its place and writes the JSON files. What an earlier call moved stays."""
    for split in SPLITS:
        for side in (split, f"{split}_mask"):
            (folder / side).mkdir(exist_ok=True)
    for id, record in manifest["volumes"].items():
        for kind, place in (("image", record["split"]), ("mask", f"{record['split']}_mask")):
            for file in (folder / UNFINISHED / id / kind).glob("*.png"):
                file.replace(folder / place / file.name)
    os.sync()  # the manifest says what is on the disk
    for split in SPLITS:
        write_json(folder / f"{split}.json", _layout(manifest, split))
    write_json(folder / MANIFEST, manifest)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def _layout(manifest: dict[str, Any], split: str) -> dict[str, Any]:
    """The content of train.json or test.json."""
    images, annotations = [], []
    for record in manifest["volumes"].values():
        if record["split"] != split:
            continue
        for image in record["images"]:
            row = {"id": len(images), "file_name": image["file"], "height": image["height"], "width": image["width"]}
            images.append(row | {"patient": record["patient"]})
            for mask in image["masks"]:
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": row["id"],
                        "mask_file": mask["file"],
                        "file_name": image["file"],
                        "split": split,
                        "object": mask["object"],
                        "sentences": [{"raw": sentence} for sentence in mask["sentences"]],
                        "area": mask["area"],
                        "patient": record["patient"],
                    }
                )
    return {"info": {"prepared": manifest["settings"]}, "images": images, "annotations": annotations}


def _summary(folder: Path, manifest: dict[str, Any], found: int) -> Written:
    written = Written(folder, found, skipped=manifest["skipped"])
    for record in manifest["volumes"].values():
        split = record["split"]
        written.units[split] += 1
        written.images[split] += len(record["images"])
        written.masks[split] += sum(len(image["masks"]) for image in record["images"])
    return written


def _name(file: Path, source: Path) -> str:
    """As the manifest names a source file: relative to the source where it lies in it."""
    return file.relative_to(source).as_posix() if file.is_relative_to(source) else str(file)


def _fingerprint(file: Path) -> dict[str, Any]:
    state = file.stat()
    return {"sha256": sha256_of_file(file), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


def sha256_of_file(file: Path) -> str:
    """In hex digits."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
