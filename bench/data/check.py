"""Every problem of data sets in one run: layout, pixels, prompts, and what is on both sides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from bench.data.dataset import UNREADABLE, Dataset, Kind, Problem, is_truncated, open_image, read_layout, why_unreadable
from bench.data.leaks import THUMBNAIL, image_leaks, perceptual_hash
from bench.data.naming import names_another
from bench.errors import UserError
from bench.interface import Sample


def check_datasets(folders: Sequence[Path], on_progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """All problems of the data sets in `folders`; [] where there is none. `on_progress` gets (done, total) images."""
    problems: list[Problem] = []
    datasets: list[Dataset] = []
    for folder in folders:
        dataset, found = read_layout(folder)
        datasets.append(dataset)
        problems += found
        problems += check_prompts(dataset)
    train = [sample for dataset in datasets for sample in dataset.train]
    test = [sample for dataset in datasets for sample in dataset.test]
    samples = [*train, *test]
    areas = {file: area for dataset in datasets for file, area in dataset.areas.items()}
    hashes = np.zeros((len(samples), THUMBNAIL**2), np.float32)
    # threads, for Pillow decodes without holding the interpreter
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, (found, own_hash) in enumerate(pool.map(lambda sample: check_sample(sample, areas), samples)):
            problems += found
            hashes[row] = own_hash
            if on_progress is not None:
                on_progress(row + 1, len(samples))
    problems += image_leaks(train, test, hashes[: len(train)], hashes[len(train) :])
    return problems


def check_prompts(dataset: Dataset) -> Iterator[Problem]:
    """One problem for each object and prompt that names another object of the data set."""
    sides = {"train": dataset.train, "test": dataset.test}
    objects = sorted({target.object for samples in sides.values() for s in samples for target in s.targets})
    seen = set()
    for side, samples in sides.items():
        for target in (target for sample in samples for target in sample.targets):
            for prompt in target.prompts:
                if (side, target.object, prompt) in seen:
                    continue
                seen.add((side, target.object, prompt))
                other = names_another(prompt, target.object, objects)
                if other is not None:
                    what = f"prompt '{prompt}' of '{target.object}' names '{other}' (first in {target.mask_file.name})"
                    file = str(dataset.root / f"{side}.json")
                    yield Problem(dataset.name, "wrong prompt", file, what, "mend its sentences")


def check_sample(sample: Sample, areas: Mapping[Path, float]) -> tuple[list[Problem], np.ndarray]:
    """What is wrong with the pixels of one image and its masks, and the image's hash (zeros if it is unreadable).

    `areas` holds the areas of masks in px that the JSON states.
    """
    problems = []

    def problem(kind: Kind, file: Path, what: str, fix: str) -> None:
        problems.append(Problem(sample.dataset, kind, str(file), what, fix))

    size = (sample.height, sample.width)
    own_hash = np.zeros(THUMBNAIL**2, np.float32)
    try:
        image = open_image(sample.image_file)
    except UserError as error:
        problem(why_unreadable(sample.image_file), sample.image_file, *_what_and_fix(sample.image_file, error))
    else:
        own_hash, size = perceptual_hash(image), (image.height, image.width)
        if is_truncated(sample.image_file):
            problem("truncated", sample.image_file, *UNREADABLE["truncated"])
    if size != (sample.height, sample.width):
        what = f"is {size[0]} x {size[1]} px, the JSON says {sample.height} x {sample.width}"
        problem("wrong size", sample.image_file, what, "mend height and width")
    for target in sample.targets:
        file = target.mask_file
        try:
            mask = open_image(file)
        except UserError as error:
            problem(why_unreadable(file), file, *_what_and_fix(file, error))
            continue
        if is_truncated(file):
            problem("truncated", file, *UNREADABLE["truncated"])
            continue
        if (mask.height, mask.width) != size:
            what = f"mask is {mask.height} x {mask.width} px, its image {size[0]} x {size[1]}"
            problem("wrong size", file, what, "make it the image's size")
            continue
        colors = _colors(mask)
        area = sum(count for color, count in colors.items() if color != "0")
        if not area:
            problem("empty mask", file, "mask is empty", "take out the annotation or mend the mask")
        elif len(colors.keys() - {"0"}) > 1:
            some = ", ".join([*colors][:4]) + ", ..." * (len(colors) > 4)
            what = f"mask is not binary: it holds {len(colors)} values ({some})"
            problem("not binary", file, what, "write 0 and 255 only, one object a file")
        elif area != areas.get(file, area):
            what = f"the JSON says an area of {areas[file]:g} px, the mask has {area}"
            problem("wrong area", file, what, "find out which is right; mend 'area' or the mask")
    return problems, own_hash


def _colors(mask: Image.Image) -> dict[str, int]:
    """Value of a pixel ("0" is background) -> number of pixels, ascending; alpha is not looked at."""
    if mask.mode in ("1", "L"):
        counts = mask.convert("L").histogram()
        return {str(value): count for value, count in enumerate(counts) if count}
    colors = sorted((color, count) for count, color in mask.convert("RGB").getcolors(mask.width * mask.height))
    return {"/".join(map(str, color)) if any(color) else "0": count for color, count in colors}


def _what_and_fix(file: Path, error: UserError) -> tuple[str, str]:
    what, fix = str(error).removeprefix(f"{file}: ").rsplit("; ", 1)
    return what, fix
