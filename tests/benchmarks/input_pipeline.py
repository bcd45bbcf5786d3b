"""Training input against a plain PyTorch DataLoader that decodes PNGs each time, and how long training waits for it.

    python tests/benchmarks/input_pipeline.py [--data DIR] [--sizes 256,1024]

Both sides draw images, targets and views by the same functions and end in the same batches: uint8 images and masks at
training size, as the model takes them. Prints rates and ratios; asserts nothing. Without --data a phantom of each size
is generated. The machine should have nothing else to do.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch.utils.data import DataLoader, Dataset

from bench.data.augment import draw_view, view_image, view_mask
from bench.data.cache import decode, training_batches
from bench.data.dataset import find_datasets, load_dataset, load_image, load_mask
from bench.data.geometry import image_to_square, mask_to_square
from bench.data.phantom import generate
from bench.environment import torch_device
from bench.interface import Batch, Sample
from bench.spec import PhantomSize, Recipe
from bench.train import attention_kernels, batch_loss, to_device
from experiments.profiles import LAPTOP
from models.segmenter import BoltzFormer

WORKERS = 2
AHEAD = 2 * WORKERS + 1  # batches that a DataLoader keeps ready, and one
SECONDS = 5.0  # of each turn
TURNS = 3
STEPS = 6


class PngDataset(Dataset):
    """What a PyTorch user would write first."""

    def __init__(self, samples: Sequence[Sample], recipe: Recipe):
        self.samples, self.recipe = samples, recipe

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        rng, size, sample = np.random.default_rng(), self.recipe.image_size, self.samples[row]
        number = min(self.recipe.prompts_per_image, len(sample.targets))
        targets = [sample.targets[t] for t in rng.choice(len(sample.targets), number, replace=False)]
        image = image_to_square(load_image(sample.image_file), size)
        masks = [mask_to_square(load_mask(target.mask_file), size).astype(np.uint8) for target in targets]
        if self.recipe.augment and (view := draw_view(size, rng)):
            whole = (image, *masks)
            image, *masks = (np.empty_like(array) for array in whole)
            view_image(whole[0], view, image)
            for mask, out in zip(whole[1:], masks, strict=True):
                view_mask(mask, view, out)
        prompts = [str(rng.choice(target.prompts)) for target in targets]
        return torch.tensor(image).permute(2, 0, 1), prompts, torch.from_numpy(np.stack(masks))


def collate(items: list) -> Batch:
    images, prompts, masks = zip(*items, strict=True)
    index = [i for i, of in enumerate(prompts) for _ in of]
    return Batch(torch.stack(images), [p for of in prompts for p in of], torch.tensor(index), torch.cat(masks))


def plain_batches(samples: Sequence[Sample], recipe: Recipe) -> Iterator[Batch]:
    """Endless batches of a DataLoader with WORKERS processes."""
    dataset = PngDataset(samples, recipe)
    rows = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**7)
    return iter(DataLoader(dataset, recipe.batch_images, sampler=rows, num_workers=WORKERS, collate_fn=collate))


def rate(batches: Iterator[Batch]) -> float:
    """Images per second over SECONDS, once what was prepared ahead is used up."""
    for _ in range(AHEAD):
        next(batches)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        images += len(next(batches).images)
    return images / (time.perf_counter() - start)


def waiting(batches: Iterator[Batch], recipe: Recipe) -> tuple[float, float]:
    """(median seconds of a training step of the laptop profile, share of them in which it waits for input)."""
    device = torch.device(torch_device())
    model = BoltzFormer(LAPTOP.backbones[0], LAPTOP.model).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, fused=True)
    draws = torch.Generator(device).manual_seed(0)
    steps, waits = [], []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - start)
        with attention_kernels(device, recipe):
            batch_loss(model, to_device(batch, device), recipe.precision, draws).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps.append(time.perf_counter() - start)
    # the first step warms up, on both sides
    return float(np.median(steps[1:])), sum(waits[1:]) / sum(steps[1:])


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(size: int, data: list[Path], folder: Path) -> None:
    recipe = LAPTOP.recipe.model_copy(update={"image_size": size})
    if not data:
        print(f"{size} px: generating the phantom")
        parameters = PhantomSize(image_size=size, patients=6, test_patients=1, slices=1)
        data = generate(folder / f"phantom-{size}", parameters, LAPTOP.objects)
    samples = [sample for dataset in find_datasets(data) for sample in load_dataset(dataset).train]
    start = time.perf_counter()
    decoded = decode(samples, size, folder / f"cache-{size}")
    print(f"{size} px: {len(samples)} images decoded once in {time.perf_counter() - start:.1f} s")

    ways = {
        "DataLoader": lambda: plain_batches(samples, recipe),
        "ours": lambda: training_batches(decoded, recipe, 0, WORKERS),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, begin in ways.items():
            rates[name].append(rate(begin()))
    plain, ours = (float(np.median(values)) for values in rates.values())
    print(f"{size} px: DataLoader {plain:.1f} images/s, ours {ours:.1f} images/s: {ours / plain:.1f} x")
    one = recipe.batch_images * (3 + recipe.prompts_per_image) * size * size / 2**20
    print(f"{size} px: a batch is {one:.0f} MiB, the process at its peak {peak_mib():.0f} MiB (mapped files included)")
    if size <= LAPTOP.recipe.image_size:
        for name, begin in ways.items():
            seconds, share = waiting(begin(), recipe)
            print(f"{size} px: laptop training step {seconds:.2f} s, of which it waits for input ({name}) {share:.2%}")


def main(
    data: Annotated[list[Path] | None, typer.Option(help="Data set folders; default: a phantom.")] = None,
    sizes: Annotated[str, typer.Option(help="px.")] = "256,1024",
) -> None:
    """Prints samples per second of both, their ratio, and the share of a training step that is waiting."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes.split(","):
            measure(int(size), data or [], Path(folder))


if __name__ == "__main__":
    typer.run(main)
