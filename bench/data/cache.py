"""Samples decoded once into memory-mapped arrays at training size, and the batches drawn from them."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from bench.data.augment import View, draw_view, view_image, view_mask
from bench.data.dataset import load_image, load_mask
from bench.data.geometry import image_to_square, mask_to_square
from bench.interface import Batch, Part, Sample
from bench.locks import lock_file
from bench.spec import Recipe


@dataclass(frozen=True)
class DecodedSamples:
    """images: (n, S, S, 3) uint8; masks: (m, S, S / 8) uint8, eight pixels a byte; first_mask: (n + 1,) offsets."""

    samples: tuple[Sample, ...]
    images: np.ndarray
    masks: np.ndarray
    first_mask: np.ndarray


@dataclass(frozen=True)
class Draw:
    """What a batch is to show of one image: its row, some of its targets, a phrase for each, and the view of it."""

    row: int
    targets: Sequence[int]
    phrases: Sequence[str]
    view: View | None = None


def decode(samples: Sequence[Sample], size: int, folder: Path) -> DecodedSamples:
    """Decodes and resizes the samples into `folder`, or opens what an earlier call put there.

    `folder` must name samples and size uniquely. Several processes may ask at once: one does the work.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    offsets = np.cumsum([0, *(len(s.targets) for s in samples)])
    with folder.with_suffix(".lock").open("w") as lock:
        lock_file(lock)
        if not folder.exists():
            _write(samples, size, offsets, folder)
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "masks")]
    return DecodedSamples(tuple(samples), arrays[0], arrays[1], offsets)


def _write(samples: Sequence[Sample], size: int, offsets: np.ndarray, folder: Path) -> None:
    # of this machine: there are file systems whose locks hold on one machine only
    temporary = folder.with_name(f"{folder.name}.{socket.gethostname()}.tmp")
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

    def fill(row: int) -> None:
        arrays["images"][row] = image_to_square(load_image(samples[row].image_file), size)
        for place, target in enumerate(samples[row].targets, start=offsets[row]):
            arrays["masks"][place] = np.packbits(mask_to_square(load_mask(target.mask_file), size), axis=1)

    with ThreadPoolExecutor(torch.get_num_threads(), "decode") as pool:
        for _ in pool.map(fill, range(len(samples))):
            pass
    for array in arrays.values():
        array.flush()
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(temporary)  # another machine was faster


def dataset_weights(counts: Sequence[int], rule: str) -> np.ndarray:
    """How often each data set is drawn, summing to 1, from its number of images; see Recipe.dataset_sampling."""
    power = {"proportional": 1.0, "square-root": 0.5, "uniform": 0.0}[rule]
    weights = np.asarray(counts, dtype=float) ** power
    return weights / weights.sum()


def training_batches(
    data: DecodedSamples,
    recipe: Recipe,
    seed: int,
    workers: int | None = None,
    start: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Endless training batches; the sequence is a function of data, recipe and seed, not of method or `workers`.

    The first `start` of them are left out, and are not made: what a run that goes on has already seen.
    `workers` threads (None: as many as torch uses here) prepare the next batch while this one is trained on; with 0
    each is prepared when it is asked for. Three batches are in memory at most: the one the caller still holds while
    it asks for the next, that next one, and the one after it. Each has batch_images x (3 + prompts_per_image) x S x S
    bytes. The decoded samples are mapped files, of which the system keeps in memory what there is room for.
    `share` (rank, count): only the images of one of `count` processes, which are a part of the same batch.
    """
    draws = (_share(whole, *share) for whole in islice(_training_draws(data, recipe, seed), start, None))
    workers = torch.get_num_threads() if workers is None else workers
    if workers == 0:
        while True:
            yield make_batch(data, *next(draws))
    with ThreadPoolExecutor(workers, "input") as pool:
        batch, writes = _begin_batch(data, *next(draws))
        written = [pool.submit(write) for write in writes]
        while True:
            for future in written:
                future.result()
            ready = batch
            batch, writes = _begin_batch(data, *next(draws))
            written = [pool.submit(write) for write in writes]
            yield ready


def evaluation_batches(
    data: DecodedSamples, batch_images: int, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[Batch, list[Sample]]]:
    """Every sample once, in order, with all its targets and their first phrasing.

    `share` (rank, count): every `count`-th batch, from the one of number `rank` on.
    """
    rank, count = share
    for start in range(rank * batch_images, len(data.samples), count * batch_images):
        samples = data.samples[start : start + batch_images]
        draws = [
            Draw(row, range(len(sample.targets)), [target.prompts[0] for target in sample.targets])
            for row, sample in enumerate(samples, start)
        ]
        yield make_batch(data, draws), list(samples)


def make_batch(data: DecodedSamples, draws: Sequence[Draw], part: Part | None = None) -> Batch:
    """The images of `draws`, of each the listed targets with the given phrasing; uint8."""
    batch, writes = _begin_batch(data, draws, part)
    for write in writes:
        write()
    return batch


def _begin_batch(
    data: DecodedSamples, draws: Sequence[Draw], part: Part | None = None
) -> tuple[Batch, list[Callable[[], None]]]:
    """A batch whose pixels are still to be written, and for each image the call that writes its own."""
    size = data.images.shape[1]
    index = [position for position, draw in enumerate(draws) for _ in draw.targets]
    images = torch.empty((len(draws), size, size, 3), dtype=torch.uint8)
    masks = torch.empty((len(index), size, size), dtype=torch.uint8)
    first_mask = np.cumsum([0, *(len(draw.targets) for draw in draws)])
    writes = [
        partial(_write_image, data, draw, images[position].numpy(), masks[first : first + len(draw.targets)].numpy())
        for position, (draw, first) in enumerate(zip(draws, first_mask, strict=False))
    ]
    prompts = [phrase for draw in draws for phrase in draw.phrases]
    return Batch(images.permute(0, 3, 1, 2), prompts, torch.tensor(index), masks, part), writes


def _write_image(data: DecodedSamples, draw: Draw, image: np.ndarray, masks: np.ndarray) -> None:
    """Writes what `draw` shows into image (S, S, 3) and masks (P, S, S)."""
    stored = data.images[draw.row]
    if draw.view is None:
        image[:] = stored
    else:
        view_image(stored, draw.view, image)
    for target, mask in zip(draw.targets, masks, strict=True):
        bits = data.masks[data.first_mask[draw.row] + target]
        stored = np.unpackbits(bits, axis=1, count=len(image))
        if draw.view is None:
            mask[:] = stored
        else:
            view_mask(stored, draw.view, mask)


def _share(draws: list[Draw], rank: int, count: int) -> tuple[list[Draw], Part]:
    """The images of process `rank` of `count`: as many as the others', or one more."""
    start, end = (len(draws) * place // count for place in (rank, rank + 1))
    prompts = [len(draw.targets) for draw in draws]
    return draws[start:end], Part(sum(prompts[:start]), sum(prompts))


def _training_draws(data: DecodedSamples, recipe: Recipe, seed: int) -> Iterator[list[Draw]]:
    rng = np.random.default_rng(seed)
    view_rng = np.random.default_rng([seed, 1])  # of its own: without augmentation the same images are drawn
    size = data.images.shape[1]
    names = sorted({s.dataset for s in data.samples})
    rows_of = [np.array([i for i, s in enumerate(data.samples) if s.dataset == name]) for name in names]
    weights = dataset_weights([len(rows) for rows in rows_of], recipe.dataset_sampling)
    while True:
        rows = [int(rng.choice(rows_of[d])) for d in rng.choice(len(names), recipe.batch_images, p=weights)]
        draws = []
        for row in rows:
            sample = data.samples[row]
            number = min(recipe.prompts_per_image, len(sample.targets))
            targets = sorted(rng.choice(len(sample.targets), number, replace=False).tolist())
            phrases = [str(rng.choice(sample.targets[t].prompts)) for t in targets]
            draws.append(Draw(row, targets, phrases, draw_view(size, view_rng) if recipe.augment else None))
        yield draws
