"""What a segmenter costs beside its Dice: operations, milliseconds, memory (the names are in `bench.fairness`)."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch
from torch import nn

from bench.predict import predict_logits
from bench.profiling.measure import FORWARD, count_gflop, phase_call, resident_kib, restart_resident_peak

MANY = 15  # prompts of one image, as on an abdominal slice of AMOS22
REPEATS = 5


def inference_cost(model: nn.Module, image_size: int, precision: str) -> dict[str, float]:
    """gflop_per_prompt, ms_1_prompt and ms_15_prompts of a trained model, on one image of `image_size` px.

    From the square image to logits, image encoder included; prompts were encoded before, as in a test. GFLOP are those
    of one prompt alone; ms_15_prompts is the time of 15 prompts together, divided by 15. Times are medians of five.
    """
    model.eval()
    device = next(model.parameters()).device
    square = np.random.default_rng(0).integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
    prompts = [f"structure {number} in abdominal CT" for number in range(1, MANY + 1)]

    def seconds(count: int) -> float:
        times = []
        for _ in range(REPEATS + 1):  # the first warms up, and lets the text encoder keep what it has encoded
            generator = torch.Generator(device).manual_seed(0)
            start = time.perf_counter()
            predict_logits(model, square, prompts[:count], precision, generator).sum().item()  # .item() waits for a GPU
            times.append(time.perf_counter() - start)
        return median(times[1:])

    costs = {"ms_1_prompt": 1e3 * seconds(1), "ms_15_prompts": 1e3 * seconds(MANY) / MANY}
    images = torch.from_numpy(square).permute(2, 0, 1)[None].to(device).float()
    index = torch.zeros(1, dtype=torch.int64, device=device)
    generator = torch.Generator(device).manual_seed(0)
    forward = lambda: model(images, prompts[:1], index, generator=generator)  # noqa: E731
    return {"gflop_per_prompt": count_gflop(phase_call(forward, FORWARD, precision))} | costs


def restart_peak(device: torch.device) -> None:
    """`peak_memory_mib` counts from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        restart_resident_peak()
    except OSError:  # not Linux: `peak_memory_mib` then has nothing to tell either
        return


def peak_memory_mib(device: torch.device) -> dict[str, float]:
    """The peak since `restart_peak`: torch's allocated memory on a GPU, on a CPU the resident memory of the process
    without mapped files (libraries, decoded samples). Empty where the system keeps no such peak.
    """
    if device.type == "cuda":
        return {"peak_memory_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    try:
        return {"peak_memory_mib": (resident_kib("VmHWM") - resident_kib("RssFile")) / 2**10}
    except (OSError, TypeError):
        return {}
