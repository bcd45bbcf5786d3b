"""Train, validation and test by patient, the same for every method, named by a hash."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.atomic import read_json, write_json
from bench.data.dataset import Dataset, load_dataset
from bench.data.official import Provenance, arrange, assign_lists, settle_leaks, with_patient
from bench.errors import UserError
from bench.interface import Sample

FORMAT = 1
REMAKE = "write it again with `bench data split`"


@dataclass(frozen=True)
class Splits:
    """The three sides of a comparison; `hash` covers every image, patient, prompt and mask.

    `provenance` says by data set name how the sides came about; a data set without is split by its folders.
    """

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    roots: dict[str, Path]
    phantom: bool
    seed: int
    val_fraction: float
    provenance: dict[str, Provenance] = field(default_factory=dict)

    @cached_property  # it reads the end of every file
    def hash(self) -> str:
        """The first 12 hex digits of a SHA-256 over names, patients, sizes, prompts and the files' fingerprints."""
        digest = hashlib.sha256()
        for side, samples in self.sides().items():
            for s in samples:
                row = [side, s.dataset, s.image_id, s.patient, s.height, s.width, fingerprint(s.image_file)]
                row += [[t.object, t.prompts, t.mask_file.name, fingerprint(t.mask_file)] for t in s.targets]
                digest.update(json.dumps(row).encode())
        return digest.hexdigest()[:12]

    def sides(self) -> dict[str, tuple[Sample, ...]]:
        """The samples by side."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def save(self, path: Path) -> None:
        """Writes splits.json: where the data are, how they were split, and which images fell on which side."""
        names: dict[str, dict[str, list[str]]] = {name: {} for name in self.roots}
        for side, samples in self.sides().items():
            for sample in samples:
                names[sample.dataset].setdefault(side, []).append(sample.image_id)
        content = {
            "format": FORMAT,
            "hash": self.hash,
            "seed": self.seed,
            "val_fraction": self.val_fraction,
            "phantom": self.phantom,
            "datasets": {name: {"root": str(root), **names[name]} for name, root in self.roots.items()},
            "provenance": {name: asdict(provenance) for name, provenance in self.provenance.items()},
        }
        write_json(path, content)


def fingerprint(file: Path) -> str:
    """Size and last 24 bytes: a PNG ends with the checksum of all its pixel data, so no other byte need be read."""
    with file.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - 24))
        return f"{size} {handle.read().hex()}"


def make_splits(datasets: Sequence[Dataset], seed: int = 0, val_fraction: float = 0.2) -> Splits:
    """Holds out `val_fraction` of each data set's training patients for validation; test is as published.

    Raises UserError where a data set has too few patients to hold one out, and where generated data sets are to be
    averaged with real ones.
    """
    generated = sorted(d.name for d in datasets if d.phantom)
    if 0 < len(generated) < len(datasets):
        raise UserError(
            f"{', '.join(generated)} holds generated images and the other data sets real ones, which no average may "
            "mix: run them apart"
        )
    train: list[Sample] = []
    val: list[Sample] = []
    test: list[Sample] = []
    for dataset in sorted(datasets, key=lambda d: d.name):
        patients = sorted({s.patient for s in dataset.train})
        if len(patients) < 2:
            raise UserError(f"{dataset.root}: one training patient cannot be split into train and validation; add more")
        chosen = draw_patients(patients, dataset.name, val_fraction, seed)
        train += [s for s in dataset.train if s.patient not in chosen]
        val += [s for s in dataset.train if s.patient in chosen]
        test += dataset.test
    roots = {d.name: d.root for d in sorted(datasets, key=lambda d: d.name)}
    return Splits(tuple(train), tuple(val), tuple(test), roots, bool(generated), seed, val_fraction)


def draw_patients(patients: Sequence[str], dataset: str, share: float, seed: int) -> set[str]:
    """`share` of the patients (sorted, each once), at least one; a function of the arguments."""
    rng = np.random.default_rng([seed, zlib.crc32(dataset.encode())])
    return set(rng.permutation(patients)[: max(1, round(share * len(patients)))].tolist())


def split_folders(
    folders: Sequence[Path],
    seed: int = 0,
    val_fraction: float = 0.2,
    official: Sequence[Path] = (),
    keep_leaks: bool = False,
) -> Splits:
    """The splits of the data sets in `folders`, by the authors' lists `official` where there is one.

    Patients in train and in test are left out of train, or stay on both sides with `keep_leaks`. Raises UserError for
    data or lists that cannot be used.
    """
    datasets = [load_dataset(folder, allow_leaks=True) for folder in folders]
    lists = assign_lists(datasets, official)
    settled, provenance = [], {}
    for dataset in datasets:
        arranged = arrange(dataset, *lists[dataset.name]) if dataset.name in lists else (dataset, Provenance())
        dataset, provenance[dataset.name] = settle_leaks(*arranged, keep_leaks)
        settled.append(dataset)
    return replace(make_splits(settled, seed, val_fraction), provenance=provenance)


def load_splits(path: Path, datasets: Sequence[Dataset] = ()) -> Splits:
    """The splits of a splits.json, from the data as they are now; UserError if they are no longer the same.

    Those of its data sets that are in `datasets` are not read again.
    """
    content = read_json(path, REMAKE)
    read = {dataset.root: dataset for dataset in datasets}
    try:
        roots = {name: Path(entry["root"]) for name, entry in content["datasets"].items()}
        provenance = {name: Provenance(**value) for name, value in content.get("provenance", {}).items()}
        sides: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
        for name, entry in content["datasets"].items():
            dataset = read.get(roots[name]) or load_dataset(roots[name], allow_leaks=True)
            found = _sides(path, dataset, entry, provenance.get(name, Provenance()))
            for side, samples in found.items():
                sides[side] += samples
        parts = (tuple(samples) for samples in sides.values())
        settings = (content["phantom"], content["seed"], content["val_fraction"])
        splits, expected = Splits(*parts, roots, *settings, provenance), content["hash"]
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise UserError(f"{path} is no splits.json of this program (no usable {error}): {REMAKE}") from None
    if splits.hash != expected:
        raise _changed(path, f"hash {splits.hash}, not {expected}")
    return splits


def split_roots(path: Path) -> list[Path]:
    """The data set folders that a splits.json names. Raises UserError."""
    content = read_json(path, REMAKE)
    try:
        return [Path(entry["root"]) for entry in content["datasets"].values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no splits.json of this program (no usable {error}): {REMAKE}") from None


def _sides(path: Path, dataset: Dataset, entry: dict, provenance: Provenance) -> dict[str, list[Sample]]:
    """The samples of a data set that a splits.json names, by side, without the masks it leaves out."""
    folders = {"train": {s.image_id: s for s in dataset.train}, "test": {s.image_id: s for s in dataset.test}}
    left_out = set(provenance.masks_left_out)
    sides: dict[str, list[Sample]] = {}
    for side in ("train", "val", "test"):
        own, other = ("test", "train") if side == "test" else ("train", "test")
        sides[side] = []
        for stem in entry.get(side, []):
            sample = folders[own].get(stem) or folders[other].get(stem)  # a list may have changed its side
            if sample is None:
                raise _changed(path, f"{stem} is not in {dataset.root}")
            if provenance.official is not None:
                targets = tuple(target for target in sample.targets if target.mask_file.name not in left_out)
                sample = replace(with_patient(sample), targets=targets)
            sides[side].append(sample)
    return sides


def _changed(path: Path, how: str) -> UserError:
    return UserError(
        f"{path}: the data have changed since these splits were made ({how}); "
        "run under another --name or restore the data"
    )
