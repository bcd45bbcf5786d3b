"""Every problem of a data set in one run: its layout, and the pixels of each image and mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.data.dataset import Dataset, Problem, load_image, load_mask, read_layout
from bench.errors import UserError
from bench.interface import Sample


def check_datasets(folders: Sequence[Path], on_progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """All problems of the data sets in `folders`; [] when they can be used. `on_progress` gets (done, total) images."""
    problems: list[Problem] = []
    datasets: list[Dataset] = []
    for folder in folders:
        dataset, found = read_layout(folder)
        datasets.append(dataset)
        problems += found
    samples = [sample for dataset in datasets for sample in (*dataset.train, *dataset.test)]
    with ThreadPoolExecutor() as pool:
        for done, found in enumerate(pool.map(check_sample, samples), start=1):
            problems += found
            if on_progress is not None:
                on_progress(done, len(samples))
    return problems


def check_sample(sample: Sample) -> list[Problem]:
    """What is wrong with the pixels of one image and its masks."""

    def problem(file: Path, what: str, fix: str) -> Problem:
        return Problem(sample.dataset, str(file), what, fix)

    problems = []
    size = (sample.height, sample.width)
    try:
        size = load_image(sample.image_file).shape[:2]
    except UserError as error:
        problems.append(_unreadable(sample, sample.image_file, error))
    if size != (sample.height, sample.width):
        stated = f"{sample.height} x {sample.width}"
        problems.append(
            problem(sample.image_file, f"is {size[0]} x {size[1]} px, the JSON says {stated}", "mend height and width")
        )
    for target in sample.targets:
        try:
            mask = load_mask(target.mask_file)
        except UserError as error:
            problems.append(_unreadable(sample, target.mask_file, error))
            continue
        if mask.shape != size:
            what = f"mask is {mask.shape[0]} x {mask.shape[1]} px, its image {size[0]} x {size[1]}"
            problems.append(problem(target.mask_file, what, "make it the image's size"))
        elif not mask.any():
            problems.append(problem(target.mask_file, "mask is empty", "take out the annotation or mend the mask"))
    return problems


def _unreadable(sample: Sample, file: Path, error: UserError) -> Problem:
    reason = str(error).removeprefix(f"{file}: ").rsplit("; ", 1)[0]
    return Problem(sample.dataset, str(file), reason, "replace the file")
