"""AMOS22: imagesTr and imagesVa with their labels; CT up to number 500, MRI above."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bench.data.prepare.recipe import is_no_sliver
from bench.data.prepare.volume import Volume, Voxels
from bench.errors import UserError

# by label number, from 1; the names of Table 9
ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "postcava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate or uterus",
)
AMBIGUOUS = "prostate or uterus"  # the authors leave it out for its name
JOINED = {"kidney": ("left kidney", "right kidney"), "adrenal gland": ("left adrenal gland", "right adrenal gland")}
LAST_CT = 500
# the authors train on these of the validation folder as well
LAST_EXTRA_CT, LAST_EXTRA_MRI = 228, 556


def volumes(source: Path, ambiguous: bool = False, min_share: float = 0.1) -> dict[str, list[Volume]]:
    """Data set -> its labelled volumes: AMOS22-CT and AMOS22-MRI, as far as `source` holds them.

    Sides are the authors': imagesTr and the first of imagesVa for training, the rest of imagesVa for testing. CT with
    a liver comes a second time, as the authors have it: its liver in the liver's window. `ambiguous` adds "prostate or
    uterus". `min_share` is the recipe's: a joined organ is there where neither side has fallen below it.
    Raises UserError for a folder that is not AMOS22.
    """
    found: dict[str, list[Volume]] = {"AMOS22-CT": [], "AMOS22-MRI": []}
    for folder, label in _labels(source):
        number = _number(label)
        image = source / f"images{folder}" / label.name
        if not image.is_file():
            raise UserError(f"{image} is missing, its label is there: unpack amos22.zip again")
        stem = label.name.removesuffix(".nii.gz")
        mri = number > LAST_CT
        extra = number <= (LAST_EXTRA_MRI if mri else LAST_EXTRA_CT)
        split = "train" if folder == "Tr" or extra else "test"
        load = partial(_load, image, label, ambiguous, min_share)
        modality, window = ("MRI", None) if mri else ("CT", "abdomen")
        volume = Volume(stem, stem, modality, "abdomen", window, split, (image, label), load)
        found[f"AMOS22-{modality}"].append(volume)
        if not mri:
            load = partial(_load_liver, image, label)
            found["AMOS22-CT"].append(replace(volume, site="liver", window="liver", load=load))
    return {name: scans for name, scans in found.items() if scans}


def _labels(source: Path) -> list[tuple[str, Path]]:
    """("Tr" or "Va", label file) of each labelled volume."""
    files = [(folder, file) for folder in ("Tr", "Va") for file in sorted(source.glob(f"labels{folder}/amos_*.nii.gz"))]
    if not files:
        raise UserError(f"{source} holds no labelsTr/amos_*.nii.gz: --source is the folder amos22 as unpacked")
    return files


def _number(file: Path) -> int:
    matched = re.fullmatch(r"amos_(\d+)\.nii\.gz", file.name)
    if matched is None:
        raise UserError(f"{file}: its name is no amos_<number>.nii.gz, which tells CT from MRI; give it back its name")
    return int(matched[1])


def _load(image: Path, label: Path, ambiguous: bool, min_share: float) -> Voxels:
    chosen = {name: number for number, name in enumerate(ORGANS, start=1) if ambiguous or name != AMBIGUOUS}
    voxels = _read(image, label, chosen)
    joined = {}
    for name, sides in JOINED.items():
        left, right = (voxels.masks[side] for side in sides)
        both = np.logical_and(*(is_no_sliver(mask.sum(axis=(1, 2)), min_share) for mask in (left, right)))
        joined[name] = (left | right) & both[:, None, None]
    return Voxels(voxels.values, voxels.masks | joined, voxels.numbers)


def _load_liver(image: Path, label: Path) -> Voxels:
    return _read(image, label, {"liver": ORGANS.index("liver") + 1})


def _read(image: Path, label: Path, chosen: dict[str, int]) -> Voxels:
    from bench.data.prepare.nifti import read_labelled

    objects = {name: (number,) for name, number in chosen.items()}
    return read_labelled(image, label, objects, known=range(1, len(ORGANS) + 1))
