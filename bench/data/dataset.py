"""Reader of the BiomedParse layout: <set>/{train,test}/*.png, {train,test}_mask/*.png and {train,test}.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from bench.errors import UserError
from bench.interface import Sample, Target

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a data set: the file, what, and how to mend it."""

    dataset: str
    file: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}; {self.fix}"


@dataclass(frozen=True)
class Dataset:
    """A data set folder as read. `phantom` is True for generated data."""

    name: str
    root: Path
    phantom: bool
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]


@dataclass
class _Reading:
    """A data set while it is read: what was found and what was wrong."""

    name: str
    root: Path
    phantom: bool = False
    samples: dict[str, list[Sample]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    patients: dict[str, set[str]] = field(default_factory=lambda: {split: set() for split in SPLITS})  # as named
    problems: list[Problem] = field(default_factory=list)

    def problem(self, file: Path, problem: str, fix: str) -> None:
        self.problems.append(Problem(self.name, str(file), problem, fix))


def find_datasets(paths: Sequence[Path]) -> list[Path]:
    """Data set folders among `paths`: each is one itself (it holds train.json) or a folder of them.

    Raises UserError for a path that is neither, and for two data sets of one name.
    """
    folders: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such data folder; give a folder with train.json and test.json")
        if (path / "train.json").exists() or (path / "test.json").exists():
            folders.append(path.resolve())
            continue
        inside = sorted(p.parent.resolve() for p in path.glob("*/train.json"))
        if not inside:
            raise UserError(f"{path}: no train.json here or one level below; see the data format in the README")
        folders += inside
    names = [folder.name for folder in folders]
    for folder in folders:
        if names.count(folder.name) > 1:
            raise UserError(f"{folder}: two data sets are named '{folder.name}'; rename one folder")
    return folders


def load_dataset(folder: Path) -> Dataset:
    """The data set in `folder`; raises UserError on the first problem of its layout (pixels are not read)."""
    dataset, problems = read_layout(folder)
    if problems:
        raise UserError(str(problems[0]))
    return dataset


def read_layout(folder: Path) -> tuple[Dataset, list[Problem]]:
    """Reads both JSON files and pairs images with masks; every problem is collected, what is sound is returned."""
    reading = _Reading(folder.name, folder.resolve())
    for split in SPLITS:
        _read_split(reading, split)
    for patient in sorted(set.intersection(*reading.patients.values())):
        reading.problem(
            folder, f"patient '{patient}' is in train and in test", "move all of a patient's images to one side"
        )
    samples = {split: tuple(sorted(reading.samples[split], key=lambda s: s.image_id)) for split in SPLITS}
    return Dataset(reading.name, reading.root, reading.phantom, samples["train"], samples["test"]), reading.problems


def _read_split(reading: _Reading, split: str) -> None:
    file = reading.root / f"{split}.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images, annotations = content["images"], content["annotations"]
        rows = [(row["id"], str(row["file_name"]), int(row["height"]), int(row["width"])) for row in images]
        files = {number: name for number, name, _, _ in rows}
        pairs = [(files.get(row["image_id"]), row, _phrases(row)) for row in annotations]
    except FileNotFoundError:
        return reading.problem(file, "missing", "write it as the README's data format says")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return reading.problem(file, f"not valid JSON ({error})", "write it again")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        needed = "'images' (id, file_name, height, width) and 'annotations' (image_id, mask_file, sentences: [{raw}])"
        return reading.problem(file, f"no usable {error}", f"it needs {needed}")
    info = content.get("info")
    reading.phantom |= isinstance(info, dict) and "phantom" in info

    for what, values in (("id", [row[0] for row in rows]), ("image name", [Path(row[1]).stem for row in rows])):
        for value, count in Counter(values).items():
            if count > 1:
                reading.problem(file, f"{count} images have the {what} '{value}'", "give each its own")

    targets: dict[str, list[Target]] = {}
    patients: dict[str, set[str]] = {}
    for name, row, prompts in pairs:
        if name is None:
            reading.problem(file, f"annotation {row.get('id')} names no image", "mend its image_id")
            continue
        mask_file = _inside(reading, file, f"{split}_mask", row.get("mask_file"))
        if mask_file is None:
            continue
        stem = Path(name).stem
        label = row.get("object") or mask_file.stem.removeprefix(stem + "_").replace("+", " ")
        if not prompts:
            reading.problem(file, f"annotation of {mask_file.name} has no sentence", "add sentences: [{'raw': ...}]")
            continue
        if any(t.object == label for t in targets.get(name, [])):
            reading.problem(file, f"'{label}' is annotated twice in {name}", "keep one mask per object")
            continue
        targets.setdefault(name, []).append(Target(str(label), prompts, mask_file))
        if row.get("patient") not in (None, ""):
            patients.setdefault(name, set()).add(str(row["patient"]))

    if not targets:
        reading.problem(file, "no image has an annotation", "a data set needs at least one on each side")
    for _, name, height, width in rows:
        image_file = _inside(reading, file, split, name)
        if image_file is None or name not in targets:  # an image without a target is of no use here
            continue
        named = patients.get(name, set())
        if len(named) > 1:
            reading.problem(file, f"{name} has several patients", "an image belongs to one patient")
        reading.patients[split] |= named
        stem = Path(name).stem
        # without a patient every image is a unit of its own
        patient = min(named) if named else f"{split}/{stem}"
        reading.samples[split].append(
            Sample(reading.name, stem, patient, image_file, height, width, tuple(targets[name]))
        )


def _phrases(annotation: dict) -> tuple[str, ...]:
    return tuple(str(s["raw"]).strip() for s in annotation.get("sentences") or [] if s.get("raw"))


def _inside(reading: _Reading, json_file: Path, folder: str, name: object) -> Path | None:
    """The file `name` in `folder`, unless it is missing or would leave the folder."""
    if not isinstance(name, str) or not name:
        reading.problem(json_file, "an entry has no file name", "every image and annotation needs one")
        return None
    home = reading.root / folder
    path = home / name
    if not path.resolve().is_relative_to(home.resolve()):
        reading.problem(json_file, f"file name '{name}' leaves {folder}/", "use a plain file name")
        return None
    if not path.is_file():
        reading.problem(path, "missing", f"add it or take it out of {json_file.name}")
        return None
    return path


def load_image(file: Path) -> np.ndarray:
    """(H, W, 3) uint8; grey images are repeated. Raises UserError naming an unreadable file."""
    with _opened(file) as image:
        if image.mode[0] in "IF":
            raise UserError(f"{file}: cannot be read as an image (more than 8 bits a channel); scale it to 0..255")
        return np.asarray(image.convert("RGB"))


def load_mask(file: Path) -> np.ndarray:
    """(H, W) bool: any of R, G, B above 0. Alpha is not looked at: BiomedParse's masks have it at 255 everywhere."""
    with _opened(file) as image:
        return np.asarray(image.convert("RGB")).any(axis=2)


def _opened(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: cannot be read as an image ({error}); replace the file") from None
    return image
