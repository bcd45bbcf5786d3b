"""The training recipe, the same for every decoder: straight down the page."""

from __future__ import annotations

import hashlib
import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.atomic import read_json, write_tensors
from bench.checkpoint import save_checkpoint
from bench.cost import inference_cost, peak_memory_mib, restart_peak
from bench.data.cache import DecodedSamples, decode, evaluation_batches, training_batches
from bench.data.geometry import logits_to_original
from bench.environment import torch_device
from bench.errors import UserError
from bench.interface import Batch, FitSummary, Log, Prediction, Sample
from bench.predict import autocast, computes_in_bf16, generator_for, predict_samples
from bench.prompts_first import learn_prompts
from bench.spec import Recipe, RunSpec, Weights
from bench.step import NOT_FINITE, Training, counted, moving_average, take_step
from bench.weights import own_weights_path, same_file
from bench.workers import PeerLost, SharedLog, Workers, here
from models.boltzmann import SharedGenerator
from models.checkpoints import CheckpointError, load_published
from models.losses import segmentation_loss
from models.published_names import SHARED
from models.text_encoder import TextEncoder

CHECKPOINT = "model.pt"
CHECKPOINT_INTERVAL = 600.0  # seconds between two from which a killed run goes on; there is one at each validation too


class TrainedSegmenter:
    """Turns a segmenter (`build` makes it, with random weights) into a Method by the recipe of its spec."""

    def __init__(self, spec: RunSpec, build: Callable[[], nn.Module]):
        assert spec.recipe is not None
        self.spec, self.recipe, self.build = spec, spec.recipe, build
        self.model: nn.Module | None = None
        self.micro_batch: int | None = None  # images at a time in training; None: all. The harness may set it

    def fit(self, train: Sequence[Sample], val: Sequence[Sample], run_dir: Path, log: Log) -> FitSummary:
        """Trains, keeps the weights of the lowest validation loss in run_dir/model.pt, and loads them again.

        Goes on from the newest checkpoint in run_dir, to the same weights as without the interruption. Each of several
        workers calls it alike; the leading one alone writes, and has a model afterwards.
        """
        recipe, seed = self.recipe, self.spec.seed
        device, workers = torch.device(torch_device()), here()
        log = log if workers.count == 1 else SharedLog(workers, log)
        cache = run_dir.parent / "cache"
        train_data = decode(train, recipe.image_size, cache / _cache_name("train", self.spec))
        val_data = decode(val, recipe.image_size, cache / _cache_name("val", self.spec))

        torch.manual_seed(seed)
        model = self.build()
        notes = [] if self.spec.weights is None else [load_weights(model, self.spec.weights, run_dir.parent)]
        if self.spec.own_weights is not None:
            notes.append(str(model.load_own(own_weights_path(self.spec, run_dir.parent))))
        given, text_encoder = starting_point(model), text_encoder_of(model)
        published = self.spec.weights.parts if self.spec.weights else ()
        if recipe.text_steps and "text_encoder" not in published:
            # on the CPU, where the same draws give the same weights to every decoder
            learn_prompts(text_encoder, train, recipe.text_steps, log)
            given["text_encoder"] += f", {recipe.text_steps} steps on the prompts"
        model.to(device)
        workers.copy_leading(text_encoder.parameters())
        model.image_encoder.recompute = recipe.gradient_checkpointing
        groups, betas = _parameter_groups(model, recipe), (0.9, recipe.beta2)
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, recipe))
        sampling = SharedGenerator(device)
        sampling.manual_seed(seed)
        training = Training(model, optimizer, schedule, sampling, moving_average(model, recipe.ema))
        now = training.resume(run_dir)
        begun = sorted({int(step) for (step,) in workers.gather(now.step)})
        if len(begun) > 1:
            raise PeerLost(f"workers would go on from steps {begun}: not all see the newest checkpoint yet")
        now.micro_batch = min(filter(None, (now.micro_batch, self.micro_batch)), default=None)
        batches = training_batches(train_data, recipe, seed, start=now.step, share=workers.share)
        loss_of = lambda part: batch_loss(model, part, recipe.precision, sampling)  # noqa: E731
        if workers.leads:
            (run_dir / NOT_FINITE).unlink(missing_ok=True)

        restart_peak(device)
        start = time.perf_counter() - now.seconds
        saved = time.perf_counter()
        while now.step < recipe.steps and now.worse < recipe.patience:
            step = now.step + 1
            model.train()
            batch = counted(to_device(next(batches), device), workers)
            workers.seed(seed, step)
            with attention_kernels(device, recipe):
                loss, norm = take_step(training, batch, loss_of, recipe.clip_norm, now, workers, log, run_dir)
            now.step, now.images_seen = step, now.images_seen + recipe.batch_images
            if step % 10 == 0:
                log.metrics(step, train_loss=loss, learning_rate=schedule.get_last_lr()[0], norm=norm)

            validates = step % recipe.validate_every == 0 or step == recipe.steps
            if validates:
                at_once = min(-(-recipe.batch_images // workers.count), now.micro_batch or recipe.batch_images)
                val_loss, val_dice = validate(training.selected, val_data, recipe, seed, at_once, workers)
                log.metrics(step, val_loss=val_loss, val_dice=val_dice)
                if val_loss < now.best_loss:
                    now.best_loss, now.best_dice, now.best_step, now.worse = val_loss, val_dice, step, 0
                    if workers.leads:
                        save_weights(training.selected, run_dir / CHECKPOINT)
                else:
                    now.worse += 1
            now.seconds = time.perf_counter() - start
            if workers.leads and (validates or time.perf_counter() - saved >= CHECKPOINT_INTERVAL):
                save_checkpoint(run_dir, step, training.state(now))
                saved = time.perf_counter()
            try:
                log.progress("train", step, recipe.steps)
            except KeyboardInterrupt:
                save_checkpoint(run_dir, step, training.state(now))
                raise

        if not workers.leads:
            return FitSummary(f"{now.step} steps", now.seconds)
        memory = peak_memory_mib(device)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.model = self._load(run_dir, model)
        stopped = f"weights of step {now.best_step}" + ("" if now.step == recipe.steps else f", stopped at {now.step}")
        return FitSummary(
            budget=f"{now.step} steps x {recipe.batch_images} images ({stopped})",
            train_seconds=now.seconds,
            parameters=trained,
            images_seen=now.images_seen,
            best_val_dice=now.best_dice,
            cost=inference_cost(self.model, recipe.image_size, recipe.precision) | memory,
            given=given | given_by_recipe(model, self.spec, now.images_seen),
            notes=notes,
        )

    def predict(self, samples: Iterable[Sample], log: Log) -> Iterator[Prediction]:
        """Masks at original resolution from the selected weights."""
        assert self.model is not None, "fit or load first"
        recipe = self.recipe
        return predict_samples(self.model, samples, recipe.image_size, recipe.precision, self.spec.seed, log)

    def load(self, run_dir: Path) -> TrainedSegmenter:
        """The weights an earlier `fit` left in `run_dir`."""
        self.model = self._load(run_dir, self.build().to(torch_device()))
        return self

    def _load(self, run_dir: Path, model: nn.Module) -> nn.Module:
        device = next(model.parameters()).device
        model.load_state_dict(torch.load(run_dir / CHECKPOINT, map_location=device, weights_only=True))
        return model.requires_grad_(False)  # nothing trains any more: the text encoder may keep what it has encoded


def starting_point(model: nn.Module) -> dict[str, str]:
    """Hashes of the weights that a decoder shares with others, before training: GIVEN of `bench.fairness`."""
    backbone, text_encoder = model.image_encoder.backbone, text_encoder_of(model)
    return {"backbone_weights": fingerprint(backbone), "text_encoder": fingerprint(text_encoder)}


def text_encoder_of(model: nn.Module) -> TextEncoder:
    """The one text encoder of a segmenter, wherever in it."""
    return next(module for module in model.modules() if isinstance(module, TextEncoder))


def given_by_recipe(model: nn.Module, spec: RunSpec, images_seen: int) -> dict[str, str]:
    """The rest of GIVEN but the split, which the harness knows. A loss of its own is told by its docstring's first
    line.
    """
    recipe = spec.recipe
    own_loss = getattr(model, "training_loss", None)
    return {
        "image_size": str(recipe.image_size),
        "images_seen": str(images_seen),
        "augmentation": "crops and quarter turns (A.5)" if recipe.augment else "none",
        "loss": "Dice and binary cross-entropy" if own_loss is None else inspect.getdoc(own_loss).splitlines()[0],
        "selection": f"lowest validation loss, every {recipe.validate_every} steps"
        + (f", of a moving average of the weights ({recipe.ema:g})" if recipe.ema else ""),
        "tuning": spec.tuning or "none",
    }


def fingerprint(module: nn.Module) -> str:
    """The first 12 hex digits of the SHA-256 of a module's parameters, in their order."""
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def load_weights(model: nn.Module, weights: Weights, suite_dir: Path) -> str:
    """Fills what `model` shares with other decoders from the published file that suite.json names; a line on it.

    UserError where the file is gone, does not fit, or is not the one that `weights` stand for.
    """
    path = Path(read_json(suite_dir / "suite.json", "run `bench run` again")["backbone_weights"])
    same_file(path, weights, "--backbone-weights")
    try:
        return str(load_published(model, path, SHARED))
    except CheckpointError as error:
        raise UserError(str(error)) from None


@contextmanager
def attention_kernels(device: torch.device, recipe: Recipe) -> Iterator[None]:
    """For forward and backward pass of a training step: on a CPU in bf16, small images get torch's plain attention.

    The backward pass of the fused one is slow there on short sequences, such as windows: a step of the laptop profile
    takes 1.3 x as long. On large images the plain one would keep the weights of all pairs of tokens.
    """
    plain = device.type == "cpu" and recipe.image_size <= 512 and computes_in_bf16(device, recipe.precision)
    with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        yield


def batch_loss(model: nn.Module, batch: Batch, precision: str, generator: torch.Generator) -> Tensor:
    """The scalar loss of one batch: the model's own where it has one, else the shared one, in fp32."""
    own_loss = getattr(model, "training_loss", None)
    with autocast(batch.images.device, precision):
        if own_loss is not None:
            return own_loss(batch, generator)
        logits = model(batch.images, batch.prompts, batch.image_index, generator=generator)
    return segmentation_loss(logits, batch.masks)


def validate(
    model: nn.Module, data: DecodedSamples, recipe: Recipe, seed: int, at_once: int, workers: Workers
) -> tuple[float, float]:
    """Mean loss and mean Dice over the prompts of `data` at training resolution; the same draws every time.

    `at_once` images at a time, of which each worker has every so many-th batch.
    """
    device = next(model.parameters()).device
    rows = []  # loss, Dice, prompts of a batch
    model.eval()
    for batch, samples in evaluation_batches(data, at_once, workers.share):
        batch = to_device(batch, device)
        with torch.inference_mode():
            with autocast(device, recipe.precision):
                asked = zip(batch.image_index.tolist(), batch.prompts, strict=True)
                generators = [generator_for(samples[image].image_id, prompt, seed, device) for image, prompt in asked]
                logits = model(batch.images, batch.prompts, batch.image_index, generator=generators)
            loss = segmentation_loss(logits, batch.masks).item()
            predicted, truth = logits_to_original(logits, *batch.masks.shape[-2:]) > 0, batch.masks > 0.5
            both = (predicted & truth).sum((1, 2))
            dice = (2 * both / (predicted.sum((1, 2)) + truth.sum((1, 2))).clamp(min=1)).mean().item()
            rows.append((loss, dice, len(batch.prompts)))
    losses, dices, weights = zip(*workers.join(rows), strict=True)
    total = sum(weights)
    mean = lambda values: sum(v * w for v, w in zip(values, weights, strict=True)) / total  # noqa: E731
    return mean(losses), mean(dices)


def warmup_cosine(step: int, recipe: Recipe) -> float:
    """The learning rate's factor: linear up, then a cosine down to zero at the last step."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`; prompts are strings and stay."""
    masks = None if batch.masks is None else batch.masks.to(device, non_blocking=True)
    images = batch.images.to(device, non_blocking=True)
    return replace(batch, images=images, image_index=batch.image_index.to(device), masks=masks)


def save_weights(model: nn.Module, path: Path) -> None:
    """The state dict, whole or not at all."""
    write_tensors(path, model.state_dict())


def _parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Weight decay on matrices, kernels and embeddings: not on biases and norms."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _cache_name(side: str, spec: RunSpec) -> str:
    key = hashlib.sha256(f"{spec.split_hash} {side}".encode()).hexdigest()[:12]
    return f"{side}-{spec.recipe.image_size}px-{key}"
