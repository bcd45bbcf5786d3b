"""Masks of any other tool as a row of a table: `bench evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.data.dataset import IMAGE_SUFFIXES, find_datasets, foreground, load_dataset, open_image
from bench.data.splits import Splits, load_splits
from bench.errors import UserError
from bench.execute import collect
from bench.external import files_hash, list_rows, method_name, new_suite, row_spec, same_suite, suite_folder, write_row
from bench.interface import Prediction, Sample
from bench.locks import locked
from bench.spec import Origin
from bench.suite_folder import read_suite

NAMED = 10  # so many names of a long list are told


def evaluate(
    predictions: Path,
    data: Sequence[Path],
    label: str,
    runs_dir: Path,
    *,
    into: str | None = None,
    missing_as_empty: bool = False,
    ignore_extra: bool = False,
    command: str = "bench evaluate",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Scores the masks in `predictions` against test splits and enters them as the row `label`; the suite's folder.

    Without `into` the folder is one of its own for these data. A suite that `into` names keeps its test split; `data`
    then choose among its data sets. `on_progress` gets (done, total) images. UserError: see `find_masks`, `read_mask`.
    """
    method_name(label)  # before anything is read
    datasets = [load_dataset(folder, allow_leaks=True) for folder in find_datasets(data)]  # only test is looked at
    names = [dataset.name for dataset in datasets]
    folder = suite_folder(into or "evaluated-" + "-".join(names), runs_dir)
    test = tuple(sample for dataset in datasets for sample in dataset.test)
    splits = Splits(
        (), (), test, {d.name: d.root for d in datasets}, any(d.phantom for d in datasets), seed=0, val_fraction=0
    )
    joins = into is not None and (folder / "suite.json").exists()
    if joins:
        splits = _splits_of(folder, splits)
    files = find_masks(predictions, splits, missing_as_empty, ignore_extra)
    digest = files_hash(predictions, filter(None, files.values()))
    origin = Origin(kind="predictions", source=predictions.resolve().name, sha256=digest)
    with locked(folder):
        if joins:
            suite = read_suite(folder)
        else:
            new = new_suite("evaluated", "Masks of other tools", command, splits.hash, splits.roots, splits.phantom)
            suite = same_suite(folder, new)
        spec = row_spec(label, origin, suite)
        records, masks = collect(spec, splits, read_masks(files, splits.test, on_progress))
        if not joins:
            splits.save(folder / "splits.json")
        empty = sum(file is None for file in files.values())
        notes = [f"{empty:,} of {len(files):,} masks are missing and count as empty"] if empty else []
        write_row(folder, spec, records, masks, notes)
        list_rows(folder, suite, {label: spec})
    return folder


def find_masks(
    predictions: Path, splits: Splits, missing_as_empty: bool = False, ignore_extra: bool = False
) -> dict[Path, Path | None]:
    """Mask file of the truth -> that of the tool, None for an empty mask; names are those of the truth.

    The files of a data set lie in a folder of its name, those of a single one also directly in `predictions`.
    UserError for masks that are missing, unless `missing_as_empty`, and for images that are no mask of the test split,
    unless `ignore_extra`.
    """
    if not predictions.is_dir():
        raise UserError(f"{predictions}: no such folder; name the folder of the predicted masks")
    files: dict[Path, Path | None] = {}
    missing, extra = [], []
    for name in splits.roots:
        own = predictions / name
        if not own.is_dir() and len(splits.roots) > 1:
            raise UserError(f"{predictions} has no folder {name}: with several data sets each needs one of its name")
        own = own if own.is_dir() else predictions
        truths = {t.mask_file.name: t.mask_file for s in splits.test if s.dataset == name for t in s.targets}
        there = {path.name for path in own.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        files |= {truth: own / file if file in there else None for file, truth in truths.items()}
        missing += [own / file for file in sorted(truths.keys() - there)]
        extra += [own / file for file in sorted(there - truths.keys()) if not file.startswith(".")]
    faults = []
    if missing and not missing_as_empty:
        faults.append(
            f"{len(missing):,} of {len(files):,} masks are missing, first {missing[0]} (--missing empty counts them "
            "as empty masks)"
        )
    if extra and not ignore_extra:
        listed = ", ".join(str(path.relative_to(predictions)) for path in extra[:NAMED])
        listed += ", ..." * (len(extra) > NAMED)
        faults.append(f"{len(extra):,} files are no mask of the test split: {listed} (--extra ignore leaves them out)")
    if faults:
        raise UserError(f"{predictions}: {'; '.join(faults)}")
    return files


def read_masks(
    files: dict[Path, Path | None], samples: Sequence[Sample], on_progress: Callable[[int, int], None]
) -> Iterator[Prediction]:
    """The tool's masks as predictions that took no known time; raises as `read_mask`."""
    for done, sample in enumerate(samples):
        for target in sample.targets:
            file = files[target.mask_file]
            empty = np.zeros((sample.height, sample.width), dtype=bool)
            yield Prediction(sample, target, empty if file is None else read_mask(file, sample), float("nan"))
        on_progress(done + 1, len(samples))


def read_mask(file: Path, sample: Sample) -> np.ndarray:
    """(height, width) bool; alpha is not looked at. UserError for a file that is no image, of another size than the
    sample's image, or of more than one value beside 0.
    """
    pixels = np.asarray(open_image(file).convert("RGB"))
    height, width = pixels.shape[:2]
    if (height, width) != (sample.height, sample.width):
        raise UserError(
            f"{file}: is {width} x {height} px, its image {sample.width} x {sample.height}; "
            "resize the mask to the image (nearest neighbour)"
        )
    mask = foreground(pixels)
    if mask.any() and (pixels[mask] != pixels[mask][0]).any():
        raise UserError(f"{file}: is not binary, it holds several values beside 0; write 0 and 255 only")
    return mask


def _splits_of(folder: Path, asked: Splits) -> Splits:
    """The test split of a suite, of the data sets in `asked` alone where there are any."""
    if not (folder / "splits.json").exists():
        raise UserError(
            f"{folder} holds published results only, without images: evaluate into a folder of its own, then "
            f"`bench import-results DIR --into` that"
        )
    suite = load_splits(folder / "splits.json")
    for name, root in asked.roots.items():
        if suite.roots.get(name) != root:
            have = ", ".join(f"{name} ({root})" for name, root in suite.roots.items())
            raise UserError(f"--data {root} is no data set of {folder}, which has {have}: name those, or none")
    names = asked.roots or suite.roots
    test = tuple(sample for sample in suite.test if sample.dataset in names)
    return replace(suite, test=test, roots={name: suite.roots[name] for name in names})
