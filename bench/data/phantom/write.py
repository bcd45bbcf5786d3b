"""The phantom on disk: seven folders in the BiomedParse layout, whole or not there."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from bench.data.phantom.difficulty import DEFAULT, Difficulty
from bench.data.phantom.plan import SlicePlan, plan_split
from bench.data.phantom.render import render_slice
from bench.data.prompts import PROMPTS, SITES
from bench.errors import UserError, unknown_name
from bench.spec import PhantomSize
from experiments.paper import DATASETS, TABLE_9

VERSION = 2  # of the generator: raise it with any change of the pictures, so that old and new do not mix
DONE = "phantom.json"  # written last; a folder without it is not a phantom
MANY = 150  # slices, from which a second process pays for its start


def objects_by_dataset(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The data sets of Table 9 that have objects of these names, with those of them. UserError for an unknown name."""
    for name in names:
        if name not in {known for _, known in TABLE_9}:
            raise unknown_name("object of Table 9", name, {known for _, known in TABLE_9})
    return {
        dataset: found for dataset in DATASETS if (found := tuple(name for name in names if (dataset, name) in TABLE_9))
    }


def parameters(
    size: PhantomSize, objects: dict[str, tuple[str, ...]] | None, difficulty: Difficulty = DEFAULT
) -> dict[str, object]:
    """Everything that decides the bytes of a phantom, ready for JSON. Raises UserError on an unknown name."""
    wanted = {dataset: [name for row, name in TABLE_9 if row == dataset] for dataset in DATASETS}
    for dataset, names in (objects or {}).items():
        if dataset not in wanted:
            raise unknown_name("phantom data set", dataset, DATASETS)
        for name in names:
            if name not in wanted[dataset]:
                raise unknown_name(f"object of {dataset}", name, wanted[dataset])
    if objects is not None:
        wanted = {d: [name for name in wanted[d] if name in objects[d]] for d in DATASETS if objects.get(d)}
    return {"version": VERSION, **size.model_dump(), "difficulty": asdict(difficulty), "objects": wanted}


def folder_name(size: PhantomSize, objects: dict[str, tuple[str, ...]] | None, difficulty: Difficulty = DEFAULT) -> str:
    """A readable name that is the same for the same phantom and different for another."""
    text = json.dumps(parameters(size, objects, difficulty), sort_keys=True, separators=(",", ":"))
    return f"phantom-{size.image_size}px-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def generate(
    out: Path,
    size: PhantomSize,
    objects: dict[str, tuple[str, ...]] | None,
    on_progress: Callable[[int, int], None] | None = None,
    difficulty: Difficulty = DEFAULT,
) -> list[Path]:
    """Writes the phantom to `out`, one folder per data set, and returns the folders.

    `objects` limits the targets per data set (None: all 38 of Table 9); data sets without any are left out.
    Every image shows at least one of them. `on_progress(done, all)` counts slices. A finished phantom of the
    same parameters is not made again. All is made in a temporary folder beside `out`, renamed at the end.
    Raises UserError where `out` holds something else, or the disk is full.
    """
    wanted = parameters(size, objects, difficulty)
    datasets = list(wanted["objects"])  # type: ignore[call-overload]
    if out.exists():
        if _finished(out, wanted):
            return [out / dataset for dataset in datasets]
        if any(out.iterdir()):
            raise UserError(f"{out}: not this phantom; remove the folder or give another")
        out.rmdir()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _fill(temporary, size, wanted, difficulty, on_progress or (lambda done, total: None))
        temporary.chmod(0o755)
        _publish(temporary, out, wanted)
    except OSError as error:
        raise UserError(f"{out}: cannot write the phantom ({error.strerror}); free some space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [out / dataset for dataset in datasets]


def _finished(out: Path, wanted: dict) -> bool:
    """Whether `out` is the whole phantom of these parameters."""
    try:
        return json.loads((out / DONE).read_text()) == wanted
    except (OSError, ValueError):
        return False


def _publish(temporary: Path, out: Path, wanted: dict) -> None:
    """Renames the finished folder; another process may have been first with the same bytes."""
    try:
        temporary.rename(out)
    except OSError:
        if not _finished(out, wanted):
            raise


def _fill(folder: Path, size: PhantomSize, wanted: dict, difficulty: Difficulty, on_progress: Callable) -> None:
    """All splits of all data sets, then the marker."""
    splits = []
    for dataset, names in wanted["objects"].items():
        for split, first, patients in (
            ("train", 1, size.patients),
            ("test", size.patients + 1, size.test_patients),
        ):
            plans = plan_split(dataset, names, first, patients, size.slices, size.seed)
            for kind in (split, f"{split}_mask"):
                (folder / dataset / kind).mkdir(parents=True)
            splits.append((folder / dataset, split, names, plans))
    jobs = [(root, split, names, plan, size, difficulty) for root, split, names, plans in splits for plan in plans]
    written: dict[tuple[Path, str], list[dict]] = {(root, split): [] for root, split, _, _ in splits}
    for done, (job, entry) in enumerate(zip(jobs, _map(_write_slice, jobs), strict=True), start=1):
        written[job[0], job[1]].append(entry)
        on_progress(done, len(jobs))
    for (root, split), entries in written.items():
        _save(_index(entries, split, wanted), root / f"{split}.json")
    _save(wanted, folder / DONE)


def _map(function: Callable, jobs: list) -> list:
    """Results in the order of the jobs; two processes where there are jobs and processors for them."""
    if len(jobs) < MANY or (os.cpu_count() or 1) < 2:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(function, jobs, chunksize=8)
        except BaseException:  # Ctrl-C too: do not wait for hundreds of slices nobody wants
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def patient_name(number: int) -> str:
    """The patient's id within its data set."""
    return f"pt{number:04d}"


def _write_slice(job: tuple[Path, str, list[str], SlicePlan, PhantomSize, Difficulty]) -> dict:
    """Renders one slice, writes its PNGs and returns what the index says of it."""
    root, split, names, plan, size, difficulty = job
    image, masks = render_slice(plan, size.image_size, size.seed, difficulty)
    modality, site, _ = SITES[plan.dataset]
    stem = f"{patient_name(plan.patient)}-z{plan.index:02d}_{modality}_{site}"
    Image.fromarray(image).save(root / split / f"{stem}.png")
    targets = []
    for name in names:
        if name not in masks:
            continue
        file = f"{stem}_{name.replace(' ', '+')}.png"
        Image.fromarray(masks[name].astype(np.uint8) * 255).save(root / f"{split}_mask" / file)
        targets.append({"object": name, "mask_file": file, "area": int(masks[name].sum())})
    return {
        "dataset": plan.dataset,
        "file_name": f"{stem}.png",
        "patient": patient_name(plan.patient),
        "size": image.shape,
        "targets": targets,
    }


def _index(entries: list[dict], split: str, wanted: dict) -> dict:
    """The JSON of one split, as BiomedParse's data have it."""
    images, annotations = [], []
    for image_id, entry in enumerate(entries):
        height, width = entry["size"]
        images.append({"id": image_id, "file_name": entry["file_name"], "height": height, "width": width})
        for target in entry["targets"]:
            phrases = PROMPTS[entry["dataset"], target["object"]]
            number = len(annotations)
            annotations.append(
                {
                    "id": number,
                    "image_id": image_id,
                    "mask_file": target["mask_file"],
                    "file_name": entry["file_name"],
                    "split": split,
                    "iscrowd": 0,
                    "sentences": [{"raw": p, "sent": p, "sent_id": i} for i, p in enumerate(phrases)],
                    "area": target["area"],
                    "patient": entry["patient"],
                    "object": target["object"],
                }
            )
    description = "phantom: generated slices, not of any patient; left is at the image's right"
    info = {"description": description, "phantom": wanted}
    return {"info": info, "images": images, "annotations": annotations}


def _save(data: dict, path: Path) -> None:
    """JSON, flushed to the disk: the folder's rename must not overtake it."""
    with path.open("w") as handle:
        json.dump(data, handle)
        handle.flush()
        os.fsync(handle.fileno())
