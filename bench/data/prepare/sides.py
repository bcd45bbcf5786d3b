"""Which scans are for training and which for testing: seeded by patient, or the authors' lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from bench.data.prepare.official import official_sides
from bench.data.prepare.volume import Volume
from bench.data.prepare.write import Unit
from bench.data.splits import draw_patients
from bench.errors import UserError

TEST_SHARE = 0.2
Scan = TypeVar("Scan", Volume, Unit)


def split_by_patient(scans: Sequence[Scan], dataset: str, seed: int = 0) -> list[Scan]:
    """The scans with 20% of the patients, at least one, drawn for test; a function of seed, name and patients.

    Raises UserError where there are fewer than two patients.
    """
    patients = sorted({scan.patient for scan in scans})
    if len(patients) < 2:
        raise UserError(f"{dataset} has {len(patients)} patient: train and test need one each; add more")
    test = draw_patients(patients, dataset, TEST_SHARE, seed)
    return [replace(scan, split="test" if scan.patient in test else "train") for scan in scans]


def split_by_lists(volumes: Sequence[Volume], lists: Path) -> tuple[list[Volume], dict[str, str]]:
    """The volumes on the sides that the authors' lists say, and those left out: id -> reason.

    Left out are volumes that the lists do not name, and training volumes of a patient with test volumes.
    """
    side_of = {stem.rsplit("_", 3)[0]: side for stem, side in official_sides(lists).items()}
    placed = [replace(volume, split=side_of[volume.id]) for volume in volumes if volume.id in side_of]
    kept, left_out = without_leaks(placed)
    left_out |= {volume.id: f"not in {lists.name}" for volume in volumes if volume.id not in side_of}
    return kept, left_out


def without_leaks(scans: Sequence[Scan]) -> tuple[list[Scan], dict[str, str]]:
    """The scans without the training scans of patients that are in test as well, and those: id -> reason."""
    tested = {scan.patient for scan in scans if scan.split == "test"}
    leaks = {s.id: f"patient {s.patient} is in test too" for s in scans if s.split == "train" and s.patient in tested}
    return [scan for scan in scans if scan.id not in leaks or scan.split == "test"], leaks
