"""Reader of the BiomedParse layout: <set>/{train,test}/*.png, {train,test}_mask/*.png and {train,test}.json."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from bench.errors import UserError, is_control, printable
from bench.interface import Sample, Target
from bench.limits import check_pixels, load_json

SPLITS = ("train", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # by content, whatever the name; not those that start other programs
LFS_POINTER = b"version https://git-lfs"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"

# below our own limit Pillow would only warn
warnings.simplefilter("error", Image.DecompressionBombWarning)

Kind = Literal[
    "layout",
    "missing file",
    "outside folder",
    "duplicate id",
    "duplicate annotation",
    "image without mask",
    "mask without annotation",
    "Git-LFS pointer",
    "truncated",
    "unreadable",
    "wrong size",
    "not binary",
    "empty mask",
    "wrong area",
    "wrong prompt",
    "patient leak",
    "image leak",
]
# what these concern is not used in training, or was found by a rule of thumb
NOT_FATAL = ("image without mask", "mask without annotation", "wrong area", "wrong prompt", "image leak")
LEAKS = ("patient leak", "image leak")
# kind -> (what, fix)
UNREADABLE = {
    "Git-LFS pointer": ("a Git-LFS pointer, not the file itself", "fetch it with `git lfs pull`"),
    "truncated": ("truncated: the end of the PNG is missing", "copy or download it again"),
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a data set: its kind, the file, what, and how to mend it."""

    dataset: str
    kind: Kind
    file: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}; {self.fix}"

    @property
    def fatal(self) -> bool:
        """Whether nothing should be trained before it is mended."""
        return self.kind not in NOT_FATAL


@dataclass(frozen=True)
class Dataset:
    """A data set folder as read. `phantom` is True for generated data; `areas` are px as stated, by mask file."""

    name: str
    root: Path
    phantom: bool
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    areas: dict[Path, float] = field(default_factory=dict, compare=False)


@dataclass
class _Reading:
    """A data set while it is read: what was found and what was wrong."""

    name: str
    root: Path
    phantom: bool = False
    samples: dict[str, list[Sample]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    patients: dict[str, set[str]] = field(default_factory=lambda: {split: set() for split in SPLITS})  # as named
    areas: dict[Path, float] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, kind: Kind, file: Path, problem: str, fix: str) -> None:
        self.problems.append(Problem(self.name, kind, printable(str(file)), printable(problem), fix))


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
            raise UserError(f"{path}: no train.json here or one level below; see docs/data.md for the layout")
        folders += inside
    names = [folder.name for folder in folders]
    for folder in folders:
        if names.count(folder.name) > 1:
            raise UserError(f"{folder}: two data sets are named '{folder.name}'; rename one folder")
    return folders


def load_dataset(folder: Path, allow_leaks: bool = False) -> Dataset:
    """The data set in `folder`; raises UserError on the first fatal problem of its layout (pixels are not read).

    `allow_leaks` lets patients be on both sides, for a caller that makes sides of its own.
    """
    dataset, problems = read_layout(folder)
    for problem in problems:
        if problem.fatal and not (allow_leaks and problem.kind == "patient leak"):
            raise UserError(str(problem))
    return dataset


def read_layout(folder: Path) -> tuple[Dataset, list[Problem]]:
    """Reads both JSON files and pairs images with masks; every problem is collected, what is sound is returned."""
    reading = _Reading(folder.name, folder.resolve())
    for split in SPLITS:
        _read_split(reading, split)
    for patient in sorted(set.intersection(*reading.patients.values())):
        fix = "move all of a patient's images to one side, or let `bench data split` leave them out of train"
        reading.problem("patient leak", folder, f"patient '{patient}' is in train and in test", fix)
    train, test = (tuple(sorted(reading.samples[split], key=lambda s: s.image_id)) for split in SPLITS)
    return Dataset(reading.name, reading.root, reading.phantom, train, test, reading.areas), reading.problems


def _read_split(reading: _Reading, split: str) -> None:
    file = reading.root / f"{split}.json"
    try:
        content = load_json(file)
    except FileNotFoundError:
        return reading.problem("missing file", file, "missing", "write it as docs/data.md says")
    except (OSError, ValueError) as error:
        if is_lfs_pointer(file):
            return reading.problem("Git-LFS pointer", file, *UNREADABLE["Git-LFS pointer"])
        return reading.problem("layout", file, f"not valid JSON ({error})", "write it again")
    try:
        images, annotations = content["images"], content["annotations"]
        rows = [(row["id"], str(row["file_name"]), int(row["height"]), int(row["width"])) for row in images]
        files = {number: name for number, name, _, _ in rows}
        pairs = [(files.get(row["image_id"]), row, sentences_of(row)) for row in annotations]
        patients = {str(row["file_name"]): {str(row["patient"])} for row in images if row.get("patient")}
        explained = {name for name, _, _ in pairs} | set(patients)  # a negative on purpose names its patient
        listed = {row.get("mask_file") for row in annotations}
        for _, name, height, width in rows:
            if height < 1 or width < 1:
                raise ValueError(f"size of {name}, {height} x {width} px")
            check_pixels(width, height)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        needed = "'images' (id, file_name, height, width) and 'annotations' (image_id, mask_file, sentences: [{raw}])"
        return reading.problem("layout", file, f"no usable {error}", f"it needs {needed}")
    info = content.get("info")
    reading.phantom |= isinstance(info, dict) and "phantom" in info

    for what, values in (("id", [row[0] for row in rows]), ("image name", [Path(row[1]).stem for row in rows])):
        for value, count in Counter(values).items():
            if count > 1:
                reading.problem("duplicate id", file, f"{count} images have the {what} '{value}'", "give each its own")

    targets = _targets(reading, split, pairs, patients)
    if not targets:
        reading.problem("layout", file, "no image has an annotation", "a data set needs at least one on each side")
    for _, name, height, width in rows:
        image_file = _inside(reading, file, split, name)
        if image_file is None:
            continue
        named = patients.get(name, set())
        if len(named) > 1:
            reading.problem("layout", file, f"{name} has several patients", "an image belongs to one patient")
        reading.patients[split] |= named
        if name not in targets:  # of no use here
            if name not in explained:
                fix = f"annotate it, take it out, or name its patient in 'images' of {file.name} if it is a negative"
                reading.problem("image without mask", image_file, "has no annotation", fix)
            continue
        stem = Path(name).stem
        # without a patient every image is a unit of its own
        patient = min(named) if named else f"{split}/{stem}"
        reading.samples[split].append(
            Sample(reading.name, stem, patient, image_file, height, width, tuple(targets[name]))
        )
    _find_unlisted(reading, split, {name for _, name, _, _ in rows}, listed)


def _targets(
    reading: _Reading, split: str, pairs: list[tuple[str | None, dict, tuple[str, ...]]], patients: dict[str, set[str]]
) -> dict[str, list[Target]]:
    """The sound annotations by image name; their patients are added to `patients`."""
    file = reading.root / f"{split}.json"
    targets: dict[str, list[Target]] = {}
    for name, row, prompts in pairs:
        if name is None:
            reading.problem("layout", file, f"annotation {row.get('id')} names no image", "mend its image_id")
            continue
        mask_file = _inside(reading, file, f"{split}_mask", row.get("mask_file"))
        if mask_file is None:
            continue
        label = object_of(row, mask_file, name)
        if not label:
            what = f"mask {mask_file.name} is not named {Path(name).stem}_<object>.png, so its object is unknown"
            reading.problem("layout", file, what, "rename it, or give its annotation an 'object'")
            continue
        texts = (str(label), str(row.get("patient") or ""), *(" ".join(prompt.split()) for prompt in prompts))
        if any(map(is_control, "".join(texts))):
            what = f"annotation of {mask_file.name} has control characters in its texts"
            reading.problem("layout", file, what, "take them out")
            continue
        if not prompts:
            fix = "add sentences: [{'raw': ...}]"
            reading.problem("layout", file, f"annotation of {mask_file.name} has no sentence", fix)
            continue
        if any(t.object == label for t in targets.get(name, [])):
            what = f"'{label}' is annotated twice in {name} (again by {mask_file.name})"
            fix = "take one out, join the masks, or name the other object"
            reading.problem("duplicate annotation", file, what, fix)
            continue
        targets.setdefault(name, []).append(Target(str(label), prompts, mask_file))
        if row.get("patient") not in (None, ""):
            patients.setdefault(name, set()).add(str(row["patient"]))
        if isinstance(row.get("area"), int | float):
            reading.areas[mask_file] = row["area"]
    return targets


def _find_unlisted(reading: _Reading, split: str, images: set[str], masks: set[object]) -> None:
    """Files that lie in the folders and that the JSON does not name."""
    for folder, kind, listed in (
        (split, "image without mask", images),
        (f"{split}_mask", "mask without annotation", masks),
    ):
        home = reading.root / folder
        for path in sorted(home.iterdir()) if home.is_dir() else ():
            if path.suffix.lower() in IMAGE_SUFFIXES and path.name not in listed and not path.name.startswith("."):
                reading.problem(kind, path, f"is not in {split}.json", f"annotate it in {split}.json or remove it")


def object_of(annotation: dict, mask: Path, image: str) -> str:
    """The object that an annotation names, or its mask's file behind the image's name; "" where neither does."""
    start = f"{Path(image).stem}_"
    named = mask.stem.removeprefix(start).replace("+", " ") if mask.stem.startswith(start) else ""
    return annotation.get("object") or named


def sentences_of(annotation: dict) -> tuple[str, ...]:
    """The prompts of an annotation as the JSON has it; () where it has none."""
    return tuple(str(s["raw"]).strip() for s in annotation.get("sentences") or [] if s.get("raw"))


def _inside(reading: _Reading, json_file: Path, folder: str, name: object) -> Path | None:
    """The file `name` in `folder`, unless it is missing or would leave the folder."""
    if not isinstance(name, str) or not name:
        reading.problem("layout", json_file, "an entry has no file name", "every image and annotation needs one")
        return None
    home = reading.root / folder
    path = home / name
    try:
        within, there = path.resolve().is_relative_to(home.resolve()), path.is_file()
    except (OSError, ValueError):  # too long, a NUL in it, no Unicode, a circle of links
        reading.problem("layout", json_file, f"file name {ascii(name)[:100]} cannot be one", "use a plain file name")
        return None
    if not within:
        what = f"file name {ascii(name)[:100]} leaves {folder}/"
        reading.problem("outside folder", json_file, what, "use a plain file name")
        return None
    if not there:
        reading.problem("missing file", path, "missing", f"add it or take it out of {json_file.name}")
        return None
    return path


def inside(home: Path, name: str) -> Path:
    """The file `name` of the folder `home`; UserError for one elsewhere. For names that somebody's JSON holds."""
    path = home / name
    if path.resolve() == home.resolve() or not path.resolve().is_relative_to(home.resolve()):
        raise UserError(f"file name {ascii(name)[:100]} leads out of {home}: use a plain file name")
    return path


def load_image(file: Path) -> np.ndarray:
    """(H, W, 3) uint8; grey images are repeated. Raises UserError naming an unreadable file."""
    with open_image(file) as image:
        return np.asarray(image.convert("RGB"))


def load_mask(file: Path) -> np.ndarray:
    """(H, W) bool: any of R, G, B above 0. Alpha is not looked at: BiomedParse's masks have it at 255 everywhere."""
    with open_image(file) as image:
        return foreground(np.asarray(image.convert("RGB")))


def foreground(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) bool: any channel above 0. `pixels.any(axis=2)` takes 20 times as long."""
    return (pixels[..., 0] | pixels[..., 1] | pixels[..., 2]) > 0


def open_image(file: Path) -> Image.Image:
    """The decoded picture, at most 8 bits a channel. Raises UserError naming an unreadable file."""
    try:
        image = Image.open(file, formats=IMAGE_FORMATS)
        check_pixels(*image.size)
        image.load()
    except Exception as error:  # Pillow raises whatever a broken file leads it to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        what, fix = UNREADABLE.get(why_unreadable(file), (reason, "replace the file"))
        raise UserError(f"{file}: cannot be read as an image ({what}); {fix}") from None
    if image.mode[0] in "IF":
        raise UserError(f"{file}: cannot be read as an image (more than 8 bits a channel); scale it to 0..255")
    return image


def why_unreadable(file: Path) -> Literal["Git-LFS pointer", "truncated", "unreadable"]:
    """Of a file that cannot be read as an image: the kind of its problem, by its first and last bytes."""
    if is_lfs_pointer(file):
        return "Git-LFS pointer"
    return "truncated" if is_truncated(file) else "unreadable"


def is_truncated(file: Path) -> bool:
    """Whether a PNG has lost its end; some decode all the same."""
    if not file.is_file():
        return False
    with file.open("rb") as handle:
        start = handle.read(len(PNG_START))
        handle.seek(max(0, handle.seek(0, os.SEEK_END) - 64))
        return start == PNG_START and PNG_END not in handle.read()


def is_lfs_pointer(file: Path) -> bool:
    """Whether Git has left a pointer where the file itself should be."""
    if not file.is_file():
        return False
    with file.open("rb") as handle:
        return handle.read(len(LFS_POINTER)) == LFS_POINTER
