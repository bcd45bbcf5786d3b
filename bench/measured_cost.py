"""`bench run --dry-run --measure`: what the trials of a plan will cost, from a few real training steps of each method.

Each method is measured in a process of its own, so that memory is its own and a lack of it ends nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from bench.errors import UserError
from bench.estimate import Workload, estimate, format_seconds
from bench.spec import RunSpec

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.table import Table
    from torch import nn

    from bench.interface import Batch
    from bench.plan import Plan

BATCHES = (1, 2, 4, 8)  # images; more are not tried than a step has
STEPS = 3  # that are timed, after one to warm up
LIMIT = 120.0  # seconds for one method; a larger batch is not begun after half of them
STOPS_AT = 600.0  # seconds until a method's process is ended
GIB = 2**10  # MiB


@dataclass(frozen=True)
class Measured:
    """Of one method at the recipe's image size, in the largest batch that was tried.

    peak_mib: the peak of a training step with that batch; image_mib: how much another image adds to it; None where
    the system keeps no peak.
    """

    batch_images: int
    train_image: float  # s per image of a training step
    predict_image: float  # s per image without gradients, all its prompts together
    peak_mib: float | None
    image_mib: float | None
    device: str


def show_measured(plan: Plan, todo: Sequence[RunSpec], console: Console) -> None:
    """Measures the methods of the trials `todo`, and prints time and memory of each and of all of them."""
    from bench.terminal import progress_bar

    representatives = {(spec.row, spec.backbone): spec for spec in todo if spec.recipe is not None}
    found: dict[tuple[str, str], Measured | str] = {}
    with progress_bar(console, "measuring") as on_progress:
        for number, (key, spec) in enumerate(representatives.items(), start=1):
            found[key] = measure_apart(spec)
            on_progress(number, len(representatives))
    console.print(cost_table(plan, todo, found))
    for line in in_words(plan, todo, found):
        console.print(line, highlight=False, soft_wrap=True)


def cost_table(plan: Plan, todo: Sequence[RunSpec], found: dict[tuple[str, str], Measured | str]) -> Table:
    """A row for each method and backbone."""
    from bench.terminal import text_table

    rows = []
    for key in dict.fromkeys((spec.row, spec.backbone) for spec in todo):
        trials = [spec for spec in todo if (spec.row, spec.backbone) == key]
        measured = found.get(key)
        hours = format_seconds(seconds_of(trials[0], plan, measured))
        if isinstance(measured, Measured):
            cells = [f"{measured.train_image:.2f}", _gib(measured.peak_mib, measured.batch_images)]
            cells += [_gib(whole_batch(trials[0], measured), trials[0].recipe.batch_images), hours]
        else:
            cells = ["-", "-", measured or "-", f"{hours} (by table)"]
        rows.append([*key, str(len(trials)), *cells])
    names = ["method", "backbone", "trials", "s an image", "peak, GiB (images)", "whole batch, GiB", "a trial"]
    return text_table(names, rows)


def in_words(plan: Plan, todo: Sequence[RunSpec], found: dict[tuple[str, str], Measured | str]) -> list[str]:
    """The lines below the table: the sum, and what the numbers are of."""
    seconds = sum(seconds_of(spec, plan, found.get((spec.row, spec.backbone))) for spec in todo)
    devices = {measured.device for measured in found.values() if isinstance(measured, Measured)}
    kind = "GPU" if any(not device.startswith("CPU") for device in devices) else "CPU"
    time_of_all = f"{seconds / 3600:.1f} {kind} hours" if seconds >= 3600 else format_seconds(seconds)
    lines = [f"all trials: about {time_of_all} of one device"]
    if devices:
        lines.append(
            f"measured on {', '.join(sorted(devices))}: the median of {STEPS} training steps and of as many "
            "predictions with random images; another device has other numbers. The whole batch's memory is that of the "
            "images measured and a share for each further one"
        )
    if any(not isinstance(found.get((spec.row, spec.backbone)), Measured) for spec in todo):
        lines.append("(by table): not measured, what experiments/costs.py says of a core at 256 px")
    return lines


def seconds_of(spec: RunSpec, plan: Plan, measured: Measured | str | None) -> float:
    """Of a trial on one device: from what was measured, else from the table of costs."""
    if not isinstance(measured, Measured):
        return estimate(spec, plan.work, plan.choice.hardware)
    return trial_seconds(spec, plan.work, measured)


def trial_seconds(spec: RunSpec, work: Workload, measured: Measured) -> float:
    """Steps, validations and the test split at the measured pace; start and end of a trial are left out."""
    recipe = spec.recipe
    assert recipe is not None
    validations = -(-recipe.steps // max(1, recipe.validate_every))
    return (
        recipe.steps * recipe.batch_images * measured.train_image
        + (validations * work.val_images + work.test_images) * measured.predict_image
    )


def whole_batch(spec: RunSpec, measured: Measured) -> float | None:
    """MiB of a step with all images of a batch on one device."""
    assert spec.recipe is not None
    if measured.peak_mib is None or measured.image_mib is None:
        return None
    return measured.peak_mib + max(0, spec.recipe.batch_images - measured.batch_images) * measured.image_mib


def measure_apart(spec: RunSpec) -> Measured | str:
    """`measure` in a process of its own; in words why there is nothing."""
    command = [sys.executable, "-m", "bench.measured_cost"]
    try:
        done = subprocess.run(
            command, input=spec.model_dump_json(), capture_output=True, text=True, timeout=STOPS_AT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not one step in {format_seconds(STOPS_AT)}"
    try:
        return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        pass
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}: out of memory, it seems"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return last[:120]


def measure(spec: RunSpec) -> Measured:
    """Real training steps of the spec's model (random weights and images) in growing batches, as long as they fit.

    RuntimeError where not even one image does.
    """
    import torch

    from bench.cost import peak_memory_mib, restart_peak
    from bench.environment import torch_device
    from bench.methods import METHODS

    recipe = spec.recipe
    assert recipe is not None
    device = torch.device(torch_device())
    torch.manual_seed(spec.seed)
    model = METHODS[spec.method].build(spec).build().to(device)
    model.image_encoder.recompute = recipe.gradient_checkpointing
    started, found, peaks = time.perf_counter(), {}, {}
    for images in _batches(recipe.batch_images):
        if found and time.perf_counter() - started > LIMIT / 2:
            break
        batch = random_batch(images, recipe.prompts_per_image, recipe.image_size, device)
        restart_peak(device)
        try:
            seconds = timed(training_step(model, batch, spec), device)
        except (RuntimeError, MemoryError):
            if not found:
                raise
            break  # it does not fit
        found[images] = seconds / images
        peaks[images] = peak_memory_mib(device).get("peak_memory_mib")
    largest = max(found)
    known = [(images, peak) for images, peak in peaks.items() if peak is not None]
    grows = len(known) > 1
    image_mib = (known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0]) if grows else None
    batch = random_batch(1, recipe.prompts_per_image, recipe.image_size, device)
    predict = timed(prediction(model, batch, spec), device)
    return Measured(largest, found[largest], predict, peaks[largest], image_mib and max(image_mib, 0), _device(device))


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds of STEPS calls, after one to warm up."""
    import torch

    times = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def training_step(model: nn.Module, batch: Batch, spec: RunSpec) -> Callable[[], None]:
    """As `bench.train` does it, on the recipe's optimiser."""
    import torch
    from torch import nn

    from bench.train import attention_kernels, batch_loss

    recipe, device = spec.recipe, batch.images.device
    assert recipe is not None
    generator = torch.Generator(device).manual_seed(0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, fused=True)

    def step() -> None:
        model.train()
        with attention_kernels(device, recipe):
            batch_loss(model, batch, recipe.precision, generator).backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def prediction(model: nn.Module, batch: Batch, spec: RunSpec) -> Callable[[], object]:
    """The logits of a batch of one image, as in validation and test."""
    import torch

    from bench.predict import autocast

    recipe, device = spec.recipe, batch.images.device
    assert recipe is not None
    generator = torch.Generator(device).manual_seed(0)

    def predict() -> object:
        model.eval()
        with torch.inference_mode(), autocast(device, recipe.precision):
            return model(batch.images, batch.prompts, batch.image_index, generator=generator)

    return predict


def random_batch(images: int, prompts: int, size: int, device: torch.device) -> Batch:
    """Noise, masks of about 1% of it, and real prompts."""
    import torch

    from bench.data.prompts import PROMPTS
    from bench.interface import Batch

    phrases = [phrasings[0] for phrasings in PROMPTS.values()]
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randint(0, 256, (images, 3, size, size), generator=generator, dtype=torch.uint8).to(device),
        prompts=[phrases[number % len(phrases)] for number in range(images * prompts)],
        image_index=torch.arange(images, device=device).repeat_interleave(prompts),
        masks=(torch.rand(images * prompts, size, size, generator=generator) < 0.01).to(device, torch.uint8),
    )


def _batches(most: int) -> Iterator[int]:
    return (images for images in BATCHES if images <= most)


def _device(device: torch.device) -> str:
    import platform

    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def _gib(mib: float | None, images: int) -> str:
    return "-" if mib is None else f"{mib / GIB:.1f} ({images})"


def main() -> None:
    """The spec on stdin, what was measured on the last line of stdout."""
    spec = RunSpec.model_validate_json(sys.stdin.read())
    try:
        print(json.dumps(asdict(measure(spec))))
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
