"""BiomedParseData as published: folders of images and masks, with JSON files or without."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bench.atomic import read_json
from bench.data.dataset import SPLITS, inside, is_lfs_pointer, load_image, load_mask, object_of, sentences_of
from bench.data.official import patient_of
from bench.data.prepare.recipe import Options, Picture, evenly_spread, image_to_size, masks_to_size
from bench.data.prepare.write import Unit
from bench.data.prompts import phrases_of
from bench.errors import UserError

# image names that say the patient: of LIDC, AMOS and the Decathlon, <scan>_<slice>_<modality>_<site>
MSD = "BRATS|la|liver|hippocampus|prostate|lung|pancreas|hepaticvessel|spleen|colon"
NAMED = re.compile(rf"(LIDC-IDRI-\d+_\d+|amos_\d+|(?:{MSD})_\d+)_\d+_[^_]+_[^_]+")


@dataclass(frozen=True)
class _Image:
    """An image and its masks: object -> (file, sentences or () where the JSON has none)."""

    file: Path
    side: str
    patient: str | None
    masks: dict[str, tuple[Path, tuple[str, ...]]]


def find_sets(source: Path) -> dict[str, Path]:
    """Name -> folder of each data set at or below `source`; the suite's sets by the paper's names.

    Raises UserError where there is none, and where two have one name.
    """
    masks = sorted(path for path in source.glob("**/*_mask") if path.is_dir())
    folders = sorted({path.parent for path in masks if path.with_name(path.name.removesuffix("_mask")).is_dir()})
    if not folders:
        raise UserError(
            f"{source} holds no images with masks (train/ beside train_mask/): unpack BiomedParseData there"
        )
    names: dict[str, Path] = {}
    for folder in folders:
        name = _set_name(folder)
        if name in names:
            raise UserError(f"{names[name]} and {folder} are both {name}: prepare them one by one")
        names[name] = folder
    return names


def units(folder: Path, dataset: str, options: Options) -> tuple[list[Unit], bool]:
    """The units of one data set, a patient's images each, and whether its own train and test were found.

    Where they were not (one folder of images under another name), all units are "train". An image whose patient is
    neither in the JSON nor in its name is a unit and a patient of its own. Sentences are the JSON's, else the
    project's. Images without masks are left out but for `options.keep_empty` of each patient.

    Raises UserError for Git-LFS pointers and missing files.
    """
    sides = sorted(p.name.removesuffix("_mask") for p in folder.glob("*_mask") if p.is_dir())
    images = [image for side in sides for image in _side(folder, side)]
    _all_there(folder, images)
    published = set(sides) <= set(SPLITS)
    by_patient = defaultdict(list)
    for image in images:
        by_patient[image.side if published else "train", image.patient or image.file.stem].append(image)
    found = []
    for (side, patient), group in sorted(by_patient.items()):
        shown = [image for image in group if image.masks]
        empty = [image for image in group if not image.masks]
        chosen = [*shown, *(empty[i] for i in evenly_spread(np.arange(len(empty)), options.keep_empty))]
        files = tuple(file for image in chosen for file in (image.file, *(mask for mask, _ in image.masks.values())))
        if chosen:
            found.append(Unit(patient, patient, side, files, partial(_pictures, chosen, dataset, options.size)))
    return found, published


def _set_name(folder: Path) -> str:
    """AMOS22-CT for amos22/CT, MSD-Lung for MSD/Task06_Lung; else the folder's own name."""
    folder = folder.resolve()
    if task := re.fullmatch(r"Task\d+_(\w+)", folder.name):
        return f"MSD-{task[1]}"
    if folder.parent.name.lower() == "amos22":
        return f"AMOS22-{folder.name}"
    return folder.name


def named_patient(stem: str) -> str | None:
    """The patient in an image's name; None where the name has another form than `NAMED`."""
    return patient_of(stem) if NAMED.fullmatch(stem) else None


def _side(folder: Path, side: str) -> list[_Image]:
    """The images of one side from its JSON, or from the names of its files."""
    listing = folder / f"{side}.json"
    if listing.is_file():
        _no_pointer(listing)
        return _listed(folder, side, listing)
    masks = defaultdict(dict)
    for file in sorted((folder / f"{side}_mask").glob("*.png")):
        stem, _, name = file.stem.rpartition("_")
        masks[stem][name.replace("+", " ")] = file, ()
    stems = sorted({*masks, *(file.stem for file in (folder / side).glob("*.png"))})
    return [_Image(folder / side / f"{stem}.png", side, named_patient(stem), masks[stem]) for stem in stems]


def _listed(folder: Path, side: str, listing: Path) -> list[_Image]:
    fix = "download it again, or delete it to go by the names of the files"
    content = read_json(listing, fix)
    masks, patients = defaultdict(dict), {}
    try:
        names = {row["id"]: str(row["file_name"]) for row in content["images"]}
        for row in content["annotations"]:
            name, file = names[row["image_id"]], inside(folder / f"{side}_mask", row["mask_file"])
            if not (label := object_of(row, file, name)):
                raise ValueError(f"object of {file.name}, which is not named {Path(name).stem}_<object>.png")
            sentences = tuple(dict.fromkeys(sentences_of(row)))
            masks[name][label] = file, sentences
            patients[name] = str(row.get("patient") or "")
        files = {name: inside(folder / side, name) for name in names.values()}
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise UserError(f"{listing} has no usable {error}: {fix}") from None
    return [
        _Image(files[name], side, patients.get(name) or named_patient(Path(name).stem), masks[name])
        for name in sorted(names.values())
    ]


def _all_there(folder: Path, images: list[_Image]) -> None:
    files = [file for image in images for file in (image.file, *(mask for mask, _ in image.masks.values()))]
    missing = [file for file in files if not file.is_file()]
    if missing:
        others = f" (and {len(missing) - 1} more)" * (len(missing) > 1)
        raise UserError(f"{missing[0]} is missing{others}: download {folder.name} again")
    for file in files:
        _no_pointer(file)


def _no_pointer(file: Path) -> None:
    if is_lfs_pointer(file):
        raise UserError(f"{file} is a Git-LFS pointer, not the file itself: run `git lfs pull` in {file.parent}")


def _pictures(images: list[_Image], dataset: str, size: int) -> Iterator[Picture]:
    for image in images:
        stem = image.file.stem
        pixels = load_image(image.file)
        if (pixels == pixels[..., :1]).all():
            pixels = pixels[..., 0]
        masks, sentences = {}, {}
        for name, (file, given) in image.masks.items():
            mask = load_mask(file)
            if mask.shape != pixels.shape[:2]:
                raise UserError(f"{file} is {_times(mask.shape)} px, its image {_times(pixels.shape[:2])}: replace it")
            masks[name] = mask
            sentences[name] = given or _phrases(dataset, name, stem)
        scaled = masks_to_size(masks, size)
        if scaled or not masks:
            yield Picture(stem, image_to_size(pixels, size), scaled, sentences)


def _phrases(dataset: str, name: str, stem: str) -> tuple[str, ...]:
    _, *place = stem.rsplit("_", 2)
    return phrases_of(dataset, name, *place) if len(place) == 2 else (name,)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
