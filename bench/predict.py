"""From a trained segmenter to masks at original resolution."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.data.dataset import load_image
from bench.data.geometry import image_to_square, masks_from_logits
from bench.interface import Log, Prediction, Sample


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """The context of a forward pass: "fp32", "bf16", or "auto", which is bf16 where the hardware multiplies in it."""
    if precision == "auto":
        precision = "bf16" if _has_bf16(device) else "fp32"
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"))
        if device.type == "cpu" and precision == "bf16":
            # torch's fused CPU attention is slower in bf16 than its plain one: a training step takes 1.3 x as long
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def generator_for(image_id: str, seed: int, device: torch.device) -> torch.Generator:
    """The randomness of one image's prediction: the same whatever comes before it and however often it is asked."""
    return torch.Generator(device).manual_seed(zlib.crc32(image_id.encode()) + (seed << 32))


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
        image = torch.from_numpy(image_to_square(load_image(sample.image_file), image_size).copy())
        prompts = [target.prompts[0] for target in sample.targets]
        start = time.perf_counter()
        with torch.inference_mode(), autocast(device, precision):
            logits = model(
                image.permute(2, 0, 1)[None].to(device).float(),
                prompts,
                torch.zeros(len(prompts), dtype=torch.int64, device=device),
                generator=generator_for(sample.image_id, seed, device),
            )
        masks = masks_from_logits(logits, sample.height, sample.width)
        seconds = (time.perf_counter() - start) / len(prompts)
        for target, mask in zip(sample.targets, masks, strict=True):
            yield Prediction(sample, target, mask, seconds)
        log.progress("predict", done + 1, len(samples))
