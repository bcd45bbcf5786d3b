"""Samples decoded once into memory-mapped arrays at training size, and the batches drawn from them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.data.augment import augment
from bench.data.dataset import load_image, load_mask
from bench.data.geometry import image_to_square, mask_to_square
from bench.interface import Batch, Sample
from bench.spec import Recipe


@dataclass(frozen=True)
class DecodedSamples:
    """images: (n, S, S, 3) uint8; masks: (m, S, S / 8) uint8, eight pixels a byte; first_mask: (n + 1,) offsets."""

    samples: tuple[Sample, ...]
    images: np.ndarray
    masks: np.ndarray
    first_mask: np.ndarray

    def batch(self, rows: Sequence[int], targets: Sequence[Sequence[int]], phrases: Sequence[Sequence[str]]) -> Batch:
        """The images of `rows`, of each the listed targets with the given phrasing."""
        images = torch.from_numpy(self.images[np.asarray(rows)]).permute(0, 3, 1, 2).float()
        wanted = [self.first_mask[row] + t for row, chosen in zip(rows, targets, strict=True) for t in chosen]
        masks = np.unpackbits(self.masks[np.asarray(wanted)], axis=2)
        index = [i for i, chosen in enumerate(targets) for _ in chosen]
        prompts = [phrase for chosen in phrases for phrase in chosen]
        return Batch(images, prompts, torch.tensor(index), torch.from_numpy(masks).float())


def decode(samples: Sequence[Sample], size: int, folder: Path) -> DecodedSamples:
    """Decodes and resizes the samples into `folder`, or opens what an earlier call put there.

    `folder` must name samples and size uniquely. Several processes may ask at once: one does the work.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    offsets = np.cumsum([0, *(len(s.targets) for s in samples)])
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _write(samples, size, offsets, folder)
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "masks")]
    return DecodedSamples(tuple(samples), arrays[0], arrays[1], offsets)


def _write(samples: Sequence[Sample], size: int, offsets: np.ndarray, folder: Path) -> None:
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    shapes = {"images": (len(samples), size, size, 3), "masks": (int(offsets[-1]), size, -(-size // 8))}
    arrays = {
        name: np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", np.uint8, shape)
        for name, shape in shapes.items()
    }
    for name in arrays:
        # the files are sparse until written: on a full disk a write to the map would kill the process
        with (temporary / f"{name}.npy").open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)
    for row, sample in enumerate(samples):
        arrays["images"][row] = image_to_square(load_image(sample.image_file), size)
        for place, target in enumerate(sample.targets, start=offsets[row]):
            arrays["masks"][place] = np.packbits(mask_to_square(load_mask(target.mask_file), size), axis=1)
    for array in arrays.values():
        array.flush()
    temporary.rename(folder)


def dataset_weights(counts: Sequence[int], rule: str) -> np.ndarray:
    """How often each data set is drawn, summing to 1, from its number of images; see Recipe.dataset_sampling."""
    power = {"proportional": 1.0, "square-root": 0.5, "uniform": 0.0}[rule]
    weights = np.asarray(counts, dtype=float) ** power
    return weights / weights.sum()


def training_batches(data: DecodedSamples, recipe: Recipe, seed: int) -> Iterator[Batch]:
    """Endless training batches; the sequence is a function of data, recipe and seed, not of the method."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    names = sorted({s.dataset for s in data.samples})
    rows_of = [[i for i, s in enumerate(data.samples) if s.dataset == name] for name in names]
    weights = dataset_weights([len(rows) for rows in rows_of], recipe.dataset_sampling)
    while True:
        rows = [int(rng.choice(rows_of[d])) for d in rng.choice(len(names), recipe.batch_images, p=weights)]
        targets, phrases = [], []
        for row in rows:
            sample = data.samples[row]
            number = min(recipe.prompts_per_image, len(sample.targets))
            chosen = sorted(rng.choice(len(sample.targets), number, replace=False).tolist())
            targets.append(chosen)
            phrases.append([str(rng.choice(sample.targets[t].prompts)) for t in chosen])
        batch = data.batch(rows, targets, phrases)
        if recipe.augment:
            batch.images, batch.masks = augment(batch.images, batch.masks, batch.image_index, generator)
        yield batch


def evaluation_batches(data: DecodedSamples, batch_images: int) -> Iterator[tuple[Batch, list[Sample]]]:
    """Every sample once, in order, with all its targets and their first phrasing."""
    for start in range(0, len(data.samples), batch_images):
        rows = range(start, min(start + batch_images, len(data.samples)))
        samples = [data.samples[row] for row in rows]
        targets = [range(len(s.targets)) for s in samples]
        phrases = [[t.prompts[0] for t in s.targets] for s in samples]
        yield data.batch(list(rows), targets, phrases), samples
