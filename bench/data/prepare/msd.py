"""The Medical Segmentation Decathlon: a task's folder with dataset.json, imagesTr and labelsTr."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from bench.atomic import read_json
from bench.data.images import WINDOWS
from bench.data.prepare.volume import Volume, Voxels
from bench.errors import UserError, unknown_name

# task -> site as the pictures' names and prompts say it; of a task not here its own name in small letters
SITES = {
    "BrainTumour": "brain",
    "Heart": "heart",
    "Liver": "liver",
    "Hippocampus": "brain",
    "Prostate": "prostate",
    "Lung": "lung",
    "Pancreas": "pancreas",
    "HepaticVessel": "liver",
    "Spleen": "abdomen",
    "Colon": "colon",
}
# label in small letters -> object as the paper and BiomedParse call it
OBJECTS = {
    "cancer": "tumor",
    "tumour": "tumor",
    "colon cancer primaries": "tumor",
}


def dataset_name(source: Path) -> str:
    """MSD-<task>: "MSD-Lung" for Task06_Lung; by the folder's name, or by dataset.json where that has another form."""
    return f"MSD-{_task(source, _description(source))}"


def volumes(source: Path, channel: str | None = None) -> list[Volume]:
    """The labelled volumes of the task in `source`, all "train".

    `channel` names one of the modalities of a 4-D task ("T1w"); the first one by default.
    Raises UserError for a folder that is no task, a name that is not there and a listed file that is missing.
    """
    description = _description(source)
    task = _task(source, description)
    index, modality = _channel(source, description, channel)
    objects = _objects(source, description, task)
    site = SITES.get(task, task.lower())
    window = None if modality == "MRI" else site if site in WINDOWS else "abdomen"
    found = []
    for image, label in _pairs(source, description):
        stem = image.name.removesuffix(".gz").removesuffix(".nii")
        load = partial(_load, image, label, objects, index)
        found.append(Volume(stem, stem, modality, site, window, "train", (image, label), load))
    return found


def _load(image: Path, label: Path, objects: dict[str, tuple[int, ...]], channel: int) -> Voxels:
    from bench.data.prepare.nifti import read_labelled

    return read_labelled(image, label, objects, channel=channel)


def _description(source: Path) -> dict[str, Any]:
    file = source / "dataset.json"
    description = read_json(file, "--source is the folder of one task, such as Task06_Lung, as unpacked")
    if not isinstance(description, dict) or not isinstance(description.get("labels"), dict):
        raise UserError(f"{file} names no labels: it needs 'labels' and 'modality', as the Decathlon's files have")
    return description


def _task(source: Path, description: dict[str, Any]) -> str:
    of_folder = re.fullmatch(r"Task\d+_(\w+)", source.resolve().name)
    name = of_folder[1] if of_folder else str(description.get("name") or source.resolve().name)
    name = re.sub(r"\W+", "", name)
    return next((task for task in SITES if task.lower() == name.lower()), name)


def _channel(source: Path, description: dict[str, Any], name: str | None) -> tuple[int, str]:
    """The index of the channel and "CT" or "MRI"."""
    channels = description.get("modality") or description.get("channel_names")
    if not isinstance(channels, dict) or not channels:
        raise UserError(f'{source / "dataset.json"} names no modality: add e.g. "modality": {{"0": "CT"}}')
    if not all(str(key).isdigit() for key in channels):
        keys = ", ".join(map(str, channels))
        raise UserError(f'{source / "dataset.json"}: \'modality\' has the keys {keys}: number them, {{"0": "CT"}}')
    names = [str(channels[key]) for key in sorted(channels, key=int)]
    lower = [known.lower() for known in names]
    if name is not None and name.lower() not in lower:
        raise unknown_name("channel", name, names)
    index = 0 if name is None else lower.index(name.lower())
    return index, "CT" if lower[index] == "ct" else "MRI"


def _objects(source: Path, description: dict[str, Any], task: str) -> dict[str, tuple[int, ...]]:
    """object -> its label numbers, from {"1": "cancer"} or the newer {"cancer": 1} and {"whole": [1, 2]}."""
    objects: dict[str, tuple[int, ...]] = {}
    for key, value in description["labels"].items():
        name, numbers = (value, key) if str(key).isdigit() else (key, value)
        try:
            numbers = tuple(int(number) for number in (numbers if isinstance(numbers, list) else [numbers]))
        except ValueError:
            raise UserError(f'{source / "dataset.json"}: label \'{key}\' has no number: write "1": "{key}"') from None
        label = re.sub(r"[/\\_]", "-", str(name).strip().lower())  # these mean something in file names
        label = f"{label} hippocampus" if task == "Hippocampus" else OBJECTS.get(label, label)
        if set(numbers) != {0}:
            objects[label] = objects.get(label, ()) + numbers
    if not objects:
        raise UserError(f"{source / 'dataset.json'} names no label but the background: add the objects' numbers")
    return objects


def _pairs(source: Path, description: dict[str, Any]) -> list[tuple[Path, Path]]:
    """Image and label of each training volume, as listed; all of labelsTr where there is no list."""
    listed = description.get("training")
    if listed:
        if not isinstance(listed, list) or not all(
            isinstance(r, dict) and {"image", "label"} <= r.keys() for r in listed
        ):
            raise UserError(
                f'{source / "dataset.json"}: \'training\' is no list of {{"image": FILE, "label": FILE}}: mend '
                "it, or take it out, which means all of labelsTr"
            )
        pairs = [(source / row["image"], source / row["label"]) for row in listed]
    else:
        labels = sorted(p for p in source.glob("labelsTr/*.nii*") if not p.name.startswith("."))
        pairs = [(source / "imagesTr" / label.name, label) for label in labels]
    missing = [file for pair in pairs for file in pair if not file.is_file()]
    if missing:
        others = f" (and {len(missing) - 1} more)" * (len(missing) > 1)
        raise UserError(f"{missing[0]} is missing{others}, though the data set lists it: unpack the task again")
    if not pairs:
        raise UserError(f"{source} holds no labelled volume: it needs imagesTr/ and labelsTr/ as unpacked")
    return pairs
