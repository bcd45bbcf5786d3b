"""Train, validation and test by patient, the same for every method, named by a hash."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.atomic import write_json
from bench.data.dataset import Dataset, load_dataset
from bench.errors import UserError
from bench.interface import Sample

FORMAT = 1


@dataclass(frozen=True)
class Splits:
    """The three sides of a comparison; `hash` covers every image, patient, prompt and mask."""

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    roots: dict[str, Path]
    phantom: bool
    seed: int
    val_fraction: float

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

    Raises UserError where a data set has too few patients to hold one out.
    """
    train: list[Sample] = []
    val: list[Sample] = []
    test: list[Sample] = []
    for dataset in sorted(datasets, key=lambda d: d.name):
        patients = sorted({s.patient for s in dataset.train})
        if len(patients) < 2:
            raise UserError(f"{dataset.root}: one training patient cannot be split into train and validation; add more")
        rng = np.random.default_rng([seed, zlib.crc32(dataset.name.encode())])
        held_out = max(1, round(val_fraction * len(patients)))
        chosen = set(rng.permutation(patients)[:held_out].tolist())
        train += [s for s in dataset.train if s.patient not in chosen]
        val += [s for s in dataset.train if s.patient in chosen]
        test += dataset.test
    roots = {d.name: d.root for d in sorted(datasets, key=lambda d: d.name)}
    phantom = any(d.phantom for d in datasets)
    return Splits(tuple(train), tuple(val), tuple(test), roots, phantom, seed, val_fraction)


def load_splits(path: Path) -> Splits:
    """Makes the splits of a splits.json again from the data and refuses if anything has changed."""
    content = json.loads(path.read_text(encoding="utf-8"))
    datasets = [load_dataset(Path(entry["root"])) for entry in content["datasets"].values()]
    splits = make_splits(datasets, content["seed"], content["val_fraction"])
    if splits.hash != content["hash"]:
        raise UserError(
            f"{path}: the data have changed since these splits were made (hash {splits.hash}, not "
            f"{content['hash']}); run under another --name or restore the data"
        )
    return splits
