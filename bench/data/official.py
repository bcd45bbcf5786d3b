"""The authors' train and test lists (mask_stats.csv), and a data set arranged by them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.data.dataset import SPLITS, Dataset
from bench.data.prepare.official import image_of, read_list
from bench.errors import UserError
from bench.interface import Sample

KEEP = "(--keep-leaks keeps those that are in the folder)"
NAMED = 5  # so many names of a long list are told


@dataclass(frozen=True)
class Provenance:
    """How the sides of a data set came about; part of splits.json.

    official: the list's file, None where the folders train and test decide. leaking_patients: those in train and in
    test. images_left_out: training images of such patients that were left out. unmatched: listed masks that have no
    file. unlisted: images in no list, which are left out. masks_left_out: masks of listed images in no list.
    """

    official: str | None = None
    leaking_patients: list[str] = field(default_factory=list)
    leaks_kept: bool = False
    images_left_out: int = 0
    unmatched: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    masks_left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Side:
    """One side of a list: image stems, their patients, the number of masks."""

    images: frozenset[str]
    patients: frozenset[str]
    masks: int


def patient_of(stem: str) -> str:
    """The patient by the authors' names: what stands before scan (of LIDC-IDRI), slice, modality and site."""
    lidc = re.match(r"LIDC-IDRI-\d+", stem)
    return lidc.group() if lidc else stem.rsplit("_", 3)[0]


def sides_of(masks: Mapping[str, str]) -> dict[str, Side]:
    """What a list (as `read_list` reads it) puts on each side; patients by their names."""
    stems: dict[str, set[str]] = {split: set() for split in SPLITS}
    for name, side in masks.items():
        stems[side].add(image_of(name))
    counts = list(masks.values())
    return {
        side: Side(frozenset(images), frozenset(map(patient_of, images)), counts.count(side))
        for side, images in stems.items()
    }


def arrange(dataset: Dataset, file: Path, masks: Mapping[str, str]) -> tuple[Dataset, Provenance]:
    """`dataset` with the masks that the list `file` names, on its sides, whatever folder they lie in.

    Raises UserError where an image name is in both folders, for it then stands for two.
    """
    samples: dict[str, Sample] = {}
    for sample in (*dataset.train, *dataset.test):
        if sample.image_id in samples:
            what = f"{sample.image_id} is in train/ and in test/"
            raise UserError(f"{dataset.root}: {what}, and {file} cannot mean both; rename one")
        samples[sample.image_id] = with_patient(sample)
    sides: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    unlisted, left_out, found = [], [], set()
    for stem, sample in sorted(samples.items()):
        listed = tuple(target for target in sample.targets if target.mask_file.name in masks)
        if not listed:
            unlisted.append(stem)
            continue
        names = {target.mask_file.name for target in listed}
        left_out += sorted(target.mask_file.name for target in sample.targets if target.mask_file.name not in names)
        sides[masks[min(names)]].append(replace(sample, targets=listed))
        found |= names
    provenance = Provenance(
        official=str(file.resolve()),
        unmatched=sorted(masks.keys() - found),
        unlisted=unlisted,
        masks_left_out=left_out,
    )
    return replace(dataset, train=tuple(sides["train"]), test=tuple(sides["test"])), provenance


def with_patient(sample: Sample) -> Sample:
    """The sample with its patient by the authors' names where the JSON names none."""
    made_up = sample.patient in {f"{split}/{sample.image_id}" for split in SPLITS}
    return replace(sample, patient=patient_of(sample.image_id)) if made_up else sample


def settle_leaks(dataset: Dataset, provenance: Provenance, keep: bool) -> tuple[Dataset, Provenance]:
    """Leaves the training images of patients who are in test as well out of train, unless `keep`; test stays."""
    both = {s.patient for s in dataset.train} & {s.patient for s in dataset.test}
    provenance = replace(provenance, leaking_patients=sorted(both), leaks_kept=keep and bool(both))
    if keep or not both:
        return dataset, provenance
    train = tuple(sample for sample in dataset.train if sample.patient not in both)
    left_out = len(dataset.train) - len(train)
    return replace(dataset, train=train), replace(provenance, images_left_out=left_out)


def assign_lists(datasets: Iterable[Dataset], files: Iterable[Path]) -> dict[str, tuple[Path, dict[str, str]]]:
    """Data set name -> its list: the one with masks of that data set.

    Raises UserError for a list that fits no data set, or one that has a list already.
    """
    names = {
        dataset.name: {target.mask_file.name for s in (*dataset.train, *dataset.test) for target in s.targets}
        for dataset in datasets
    }
    assigned: dict[str, tuple[Path, dict[str, str]]] = {}
    for file in files:
        masks = read_list(file)
        shared = {name: len(own & masks.keys()) for name, own in names.items()}
        best = max(shared, key=lambda name: shared[name])
        if not shared[best]:
            here = min(names[best], default="nothing")
            raise UserError(
                f"{file} lists masks like {min(masks)}, the data sets ({', '.join(names)}) hold masks like {here}; "
                "name the list of these data, prepared by `bench data prepare`"
            )
        if best in assigned:
            raise UserError(f"{file} and {assigned[best][0]} both list masks of {best}: leave one out")
        assigned[best] = (file, masks)
    return assigned


def notes(name: str, provenance: Provenance) -> list[str]:
    """What a reader of a comparison on these sides should know, a sentence a line."""
    lines = []
    if provenance.official:
        lines.append(f"{name}: train and test are those of {provenance.official}")
    if provenance.leaking_patients:
        who = leak_sentence(provenance.leaking_patients)
        left_out = f"their training images ({provenance.images_left_out}) are left out"
        lines.append(
            f"{name}: {who}; "
            + ("kept in both, as asked: Dice on test is flattered" if provenance.leaks_kept else f"{left_out} {KEEP}")
        )
    for items, what in (
        (provenance.unmatched, "listed masks without a file here"),
        (provenance.unlisted, "images in no list, left out"),
        (provenance.masks_left_out, "masks in no list of images that are listed, left out"),
    ):
        if items:
            first = ", ".join(items[:NAMED]) + ", ..." * (len(items) > NAMED)
            lines.append(f"{name}: {what}: {len(items):,} ({first})")
    return lines


def leak_sentence(patients: Iterable[str]) -> str:
    """ "2 patients are in train and in test: a, b"."""
    patients = list(patients)
    verb = "patient is" if len(patients) == 1 else "patients are"
    return f"{len(patients)} {verb} in train and in test: {', '.join(patients)}"


def leaking_images(masks: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Patients on both sides of a list -> number of images by side."""
    images: dict[str, dict[str, set[str]]] = defaultdict(lambda: {split: set() for split in SPLITS})
    for name, side in masks.items():
        images[patient_of(image_of(name))][side].add(image_of(name))
    return {
        patient: {side: len(stems) for side, stems in sides.items()}
        for patient, sides in sorted(images.items())
        if all(sides.values())
    }
