"""From a trained segmenter to masks at original resolution."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bench.data.dataset import load_image
from bench.data.geometry import image_to_square, masks_from_logits
from bench.interface import Log, Prediction, Sample
from models.boltzmann import Draws


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass: "fp32", "bf16", or "auto", which is bf16 where the hardware multiplies in it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(device, precision))


def computes_in_bf16(device: torch.device, precision: str) -> bool:
    """Whether `precision` ("fp32", "bf16" or "auto") means bf16 on `device`."""
    return precision == "bf16" or (precision == "auto" and _has_bf16(device))


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def generator_for(image_id: str, prompt: str, seed: int, device: torch.device) -> torch.Generator:
    """The randomness of a prompt's prediction on an image: the same whatever else is asked, and however often."""
    return torch.Generator(device).manual_seed(zlib.crc32(f"{image_id}\0{prompt}".encode()) + (seed << 32))


def predict_logits(
    model: nn.Module, square: np.ndarray, prompts: Sequence[str], precision: str, generator: Draws, **hooks
) -> Tensor:
    """One image (S, S, 3) uint8 in the square frame and its P prompts, all together -> logits (P, s, s).

    `hooks` are further arguments of the model's forward (BoltzFormer's `choose`).
    """
    device = next(model.parameters()).device
    images = torch.from_numpy(square.copy()).permute(2, 0, 1)[None].to(device).float()
    image_index = torch.zeros(len(prompts), dtype=torch.int64, device=device)
    with torch.inference_mode(), autocast(device, precision):
        return model(images, list(prompts), image_index, generator=generator, **hooks)


def confidences(logits: Tensor) -> list[float]:
    """Of each mask of (P, h, w) logits the mean probability over its pixels, the highest where it has none."""
    probabilities = logits.float().sigmoid().flatten(1)
    inside = probabilities > 0.5
    mean = (probabilities * inside).sum(1) / inside.sum(1).clamp(min=1)
    return torch.where(inside.any(1), mean, probabilities.amax(1)).tolist()


def predict_samples(
    model: nn.Module, samples: Iterable[Sample], image_size: int, precision: str, seed: int, log: Log
) -> Iterator[Prediction]:
    """One prediction per (image, target) from the target's first prompt, all prompts of an image together.

    `seconds` is the image's time, decoding left out, shared equally among its prompts.
    """
    device = next(model.parameters()).device
    samples = list(samples)
    model.eval()
    for done, sample in enumerate(samples):
        square = image_to_square(load_image(sample.image_file), image_size)
        prompts = [target.prompts[0] for target in sample.targets]
        start = time.perf_counter()
        generators = [generator_for(sample.image_id, prompt, seed, device) for prompt in prompts]
        logits = predict_logits(model, square, prompts, precision, generators)
        masks = masks_from_logits(logits, sample.height, sample.width)
        seconds = (time.perf_counter() - start) / len(prompts)
        for target, mask, confidence in zip(sample.targets, masks, confidences(logits), strict=True):
            yield Prediction(sample, target, mask, seconds, confidence)
        log.progress("predict", done + 1, len(samples))
