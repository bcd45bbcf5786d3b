"""The laptop profile's training step: all prompts of an image together against one prompt per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from bench.environment import torch_device
from bench.measured_cost import random_batch, training_step
from bench.profiling import overhead
from bench.profiling.measure import FULL_PACE, PLAIN, QUICK_PACE, Case, Pace, Result, Way, measure, rows_of
from experiments.profiles import LAPTOP
from models.plain import plain_forward
from models.segmenter import BoltzFormer

SAMPLES = 16  # (image, prompt) pairs of a step, half of the profile's; the same for every way
TOGETHER, SINGLY = "together", "one prompt per image"
STEP = "training step"


def cases(quick: bool, threads: Sequence[int]) -> list[Case]:
    """Forward, backward and the optimiser's step of SAMPLES samples, with k prompts of each image or an image each.

    Before them a whole trial (`bench.profiling.overhead`). `plain` is the plain path with an image each. A row's
    `prompts` is k for every way, so that it has what it is compared with beside it.
    """
    together = (4,) if quick else (2, 4, 8)
    pace = QUICK_PACE if quick else FULL_PACE
    return [
        overhead.case(quick),
        *(
            Case(
                f"harness, {SAMPLES} samples, {dtype}, {count} thread{'s' * (count != 1)}",
                5 + (4 + 1.5 * len(together)) * (pace.rounds + 2) / min(count, 2) ** 0.8,
                partial(_run, together, dtype, count, pace),
            )
            for dtype, count in product(("fp32",) if quick else ("fp32", "bf16"), threads)
        ),
    ]


def _run(together: Sequence[int], dtype: str, threads: int, pace: Pace) -> Result:
    torch.manual_seed(0)
    model = BoltzFormer(LAPTOP.backbones[0], LAPTOP.model).to(torch_device()).train()
    steps = [(PLAIN, partial(plain_forward, model), 1), (SINGLY, model, 1), *((TOGETHER, model, k) for k in together)]
    ways = [
        Way(
            "boltzformer",
            path,
            _step(model, forward, prompts, dtype),
            LAPTOP.model.queries,
            (LAPTOP.model.sampling_ratio,),
            prompts,
        )
        for path, forward, prompts in steps
    ]
    size = LAPTOP.recipe.image_size
    where = {"scope": "harness", "image_size": size, "tokens": (size // 8) ** 2}
    where |= {"phase": STEP, "dtype": dtype, "threads": threads}
    result = Result()
    for way, found in zip(ways, measure(ways, pace, threads), strict=True):
        # an image for each prompt is the same work however many prompts an image has: a row for each
        for prompts in [way.prompts] if way.path == TOGETHER else together:
            result.rows += rows_of(replace(way, prompts=prompts), found, **where)
    return result


def _step(model: BoltzFormer, forward: Callable[..., Tensor], prompts: int, dtype: str) -> Callable[[], None]:
    """As `bench.train` does it, on its recipe's optimiser."""
    # a step of no length is the same work, and every way meets the same weights
    recipe = LAPTOP.recipe.model_copy(update={"precision": dtype, "learning_rate": 0.0})
    batch = random_batch(SAMPLES // prompts, prompts, recipe.image_size, torch.device(torch_device()))
    return partial(training_step(forward, model.parameters(), recipe), batch)
