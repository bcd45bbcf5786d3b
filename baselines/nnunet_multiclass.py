"""nnU-Net with one model per data set: the label map of all its objects, instead of an expert for each.

A pixel of a label map has one label. Data sets with joint classes (in AMOS22 "kidney" is the left and the right
kidney) cannot be trained on so, and are refused before anything starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

from baselines.nnunet import Nnunet, budget_of
from bench.data.dataset import load_mask
from bench.data.splits import Splits
from bench.errors import UserError
from bench.interface import Sample
from bench.spec import RunSpec

LOST = 0.05  # of an object's pixels may be another's too: where contours meet they share a few; joint classes share all


def build(spec: RunSpec) -> Nnunet:
    """The method of a run. Raises ValueError if the spec has no nnU-Net budget."""
    return Nnunet(budget_of(spec), spec.seed, multiclass=True)


def refuse_overlaps(splits: Splits) -> None:
    """Raises UserError that names the data sets whose objects overlap in training or validation, and the pairs."""
    samples: dict[str, list[Sample]] = {}
    for sample in (*splits.train, *splits.val):
        samples.setdefault(sample.dataset, []).append(sample)
    found = {dataset: overlapping_pairs(rows) for dataset, rows in samples.items()}
    told = [
        f"{dataset} ({', '.join(f'{smaller} with {larger}' for smaller, larger in pairs)})"
        for dataset, pairs in found.items()
        if pairs
    ]
    if told:
        raise UserError(
            f"nnunet_multiclass: a label map gives a pixel one label, and objects overlap in {'; '.join(told)}: use "
            "--methods nnunet (an expert for each object), or a data set without the joint classes"
        )


def overlapping_pairs(samples: Iterable[Sample]) -> list[tuple[str, str]]:
    """The pairs of objects (smaller, larger) that share more than 5% of the smaller one's pixels, by name.

    Pixels are summed over `samples`, every mask of which is read.
    """
    areas: Counter[str] = Counter()
    shared: Counter[tuple[str, str]] = Counter()
    with ThreadPoolExecutor() as pool:  # threads, for Pillow decodes without holding the interpreter
        for areas_here, shared_here in pool.map(count_pixels, samples):
            areas.update(areas_here)
            shared.update(shared_here)
    return sorted(
        tuple(sorted(pair, key=areas.__getitem__))
        for pair, both in shared.items()
        if both > LOST * min(areas[name] for name in pair)
    )


def count_pixels(sample: Sample) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """The pixels of each object of an image, and those that two of them, by alphabet, share."""
    masks = {target.object: load_mask(target.mask_file) for target in sample.targets}
    areas = {name: int(mask.sum()) for name, mask in masks.items()}
    pairs = combinations(sorted(masks), 2)
    return areas, {(first, second): int((masks[first] & masks[second]).sum()) for first, second in pairs}
