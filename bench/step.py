"""One optimiser step: the batch in as many parts as memory asks for, on one worker or several, to the same gradients.

The loss of a part is weighed by its share of the batch's prompts, so that the gradients add up to those of the whole
batch's loss, a mean over prompts. Every part draws the noise of its own prompts (`models.boltzmann.SharedGenerator`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench.atomic import write_tensors
from bench.checkpoint import newest_checkpoint
from bench.errors import UserError, comes_from_outside, is_out_of_memory
from bench.interface import Batch, Log, Part
from bench.workers import Workers
from models.boltzmann import SharedGenerator

NOT_FINITE = "not-finite.pt"  # in the run folder: the batch at which training broke off


@dataclass
class Progress:
    """How far training has come, `step` steps; losses and Dice are those of validation."""

    step: int = 0
    images_seen: int = 0
    best_loss: float = math.inf
    best_dice: float = 0.0
    best_step: int = 0
    worse: int = 0  # validations in a row without a lower loss
    seconds: float = 0.0
    micro_batch: int | None = None  # images that a worker has at once; None: all of its share


@dataclass(frozen=True)
class Training:
    """All that changes from step to step but the batches, whose order is a function of the step. There is no loss
    scaler: bf16 needs none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    sampling: SharedGenerator
    average: AveragedModel | None = None  # the moving average of the weights

    @property
    def selected(self) -> nn.Module:
        """The model that is validated and kept."""
        return self.model if self.average is None else self.average.module

    def state(self, progress: Progress) -> dict[str, Any]:
        """Everything from which `resume` goes on to the same bits."""
        parts = {name: getattr(self, name).state_dict() for name in self._parts()}
        return parts | {"random": self.random_state(), "progress": asdict(progress)}

    def resume(self, run_dir: Path) -> Progress:
        """Takes up the newest checkpoint of `run_dir`, if there is one. UserError for one of another model."""
        found = newest_checkpoint(run_dir)
        if found is None:
            return Progress()
        file, state = found
        try:
            for name in self._parts():
                getattr(self, name).load_state_dict(state[name])
            progress = Progress(**state["progress"])
            self.set_random_state(state["random"])
        except Exception as error:  # a file with the hash of its bytes may hold anything
            if comes_from_outside(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{file} is not a checkpoint of this run ({reason}): remove it") from None
        print(f"goes on from step {progress.step}, by {file.name}")
        return progress

    def random_state(self) -> dict[str, Any]:
        """Where the random numbers of this process stand, in tensors and plain Python values."""
        name, keys, *rest = np.random.get_state()
        state = {"cpu": torch.get_rng_state(), "sampling": self.sampling.get_state()}
        state |= {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest)}
        return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Goes back to what `random_state` has found."""
        torch.set_rng_state(state["cpu"])
        self.sampling.set_state(state["sampling"])
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])

    def _parts(self) -> list[str]:
        return ["model", "optimizer", "schedule", *(["average"] if self.average is not None else [])]


def moving_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """The moving average of a model's weights, which begins with those of the first step; None at decay 0."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None


def take_step(
    training: Training,
    batch: Batch,
    loss_of: Callable[[Batch], Tensor],
    clip_norm: float,
    now: Progress,
    workers: Workers,
    log: Log,
    run_dir: Path,
) -> tuple[float, float]:
    """The step after `now.step`, on this worker's images of the batch: the loss of all prompts, the gradient's norm.

    `loss_of` is the mean loss over a batch's prompts. Where a worker's memory does not suffice, all begin the step anew
    with half the images at a time, by the same draws, and keep to it; where that fails too the error stands.
    FloatingPointError for a loss or a gradient that is not finite, before it reaches the weights: it names the file
    that then holds the batch.
    """
    step, before = now.step + 1, training.random_state()
    failure = None

    def broken_off(what: str, rank: int) -> FloatingPointError:
        file = run_dir / NOT_FINITE
        if workers.rank == rank:
            _leave(file, training, batch, before, step)
        workers.gather(0)  # the error of one ends the processes of all: not before the file is there
        return FloatingPointError(f"{what} at step {step}; its batch is in {file}")

    while True:
        error, loss = None, 0.0
        try:
            loss = _backward(training, batch, loss_of, now.micro_batch, workers)
        except (RuntimeError, MemoryError) as caught:
            if not is_out_of_memory(caught):
                raise
            error = " ".join(str(caught).split())[:200] or type(caught).__name__
        found = workers.gather(loss, error is not None)
        if not any(out for _, out in found):
            break
        training.optimizer.zero_grad(set_to_none=True)
        training.set_random_state(before)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        at_once = min(now.micro_batch or len(batch.images), len(batch.images))
        at_once = int(max(most for (most,) in workers.gather(at_once)))
        if failure is not None or at_once == 1:
            reason = f"{at_once} images at a time: {error or failure}"
            raise torch.OutOfMemoryError(f"out of memory at step {step}, {reason}")
        failure, now.micro_batch = error or "another worker's", (at_once + 1) // 2
        print(f"out of memory at step {step}: again with {now.micro_batch} images at a time, to the same batch")
        log.metrics(step, images_at_once=now.micro_batch)
    losses = [loss for loss, _ in found]
    if broken := [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]:
        raise broken_off(f"the training loss is {losses[broken[0]]}", broken[0])
    workers.sum_gradients(training.model.parameters())
    norm = nn.utils.clip_grad_norm_(training.model.parameters(), clip_norm).item()
    if not math.isfinite(norm):
        raise broken_off(f"the gradient's norm is {norm}", 0)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    training.schedule.step()
    if training.average is not None:
        training.average.update_parameters(training.model)
    return sum(losses), norm


def _backward(
    training: Training, batch: Batch, loss_of: Callable[[Batch], Tensor], at_once: int | None, workers: Workers
) -> float:
    """Adds the gradients of this worker's images; their part of the loss. At one that is not finite it ends there."""
    begin, loss = training.sampling.get_state(), 0.0
    for part in parts_of(batch, at_once or len(batch.images)):
        training.sampling.set_state(begin)
        training.sampling.first, training.sampling.total = part.part.first, part.part.total
        of_part = loss_of(part)
        if (share := len(part.prompts) / part.part.total) != 1:
            of_part = of_part * share
        loss += of_part.item()
        if not math.isfinite(loss):
            break
        of_part.backward()
    return loss


def parts_of(batch: Batch, at_once: int) -> Iterator[Batch]:
    """The batch, `at_once` of its images at a time."""
    whole = batch.part or Part(0, len(batch.prompts))
    if at_once >= len(batch.images):
        yield replace(batch, part=whole)
        return
    for start in range(0, len(batch.images), at_once):
        here = (batch.image_index >= start) & (batch.image_index < start + at_once)
        first, last = here.nonzero().flatten()[[0, -1]].tolist()
        prompts = slice(first, last + 1)
        masks = None if batch.masks is None else batch.masks[prompts]
        images, index = batch.images[start : start + at_once], batch.image_index[prompts] - start
        yield Batch(images, batch.prompts[prompts], index, masks, replace(whole, first=whole.first + first))


def counted(batch: Batch, workers: Workers) -> Batch:
    """The batch with the number of masks that are not empty in the whole one, which some losses are divided by."""
    part = batch.part or Part(0, len(batch.prompts))
    objects = sum(here for (here,) in workers.gather(batch.masks.flatten(1).any(1).sum().item()))
    return replace(batch, part=replace(part, objects=int(objects)))


def _leave(file: Path, training: Training, batch: Batch, random_state: dict[str, Any], step: int) -> None:
    """Writes what the loss was computed from, as plain tensors and strings; a full disk hides no reason."""
    part = batch.part or Part(0, len(batch.prompts))
    content = {
        "step": step,
        "images": batch.images,
        "prompts": batch.prompts,
        "image_index": batch.image_index,
        "masks": batch.masks,
        "part": asdict(part),
        "random": random_state,
        "model": training.model.state_dict(),
    }
    try:
        write_tensors(file, content)
    except OSError as error:
        print(f"the batch of step {step} could not be written: {error}")
