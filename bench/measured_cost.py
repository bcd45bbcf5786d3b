"""`bench run --dry-run --measure`: what the trials of a plan will cost, from a few real training steps of each method.

Each method is measured in a process of its own, so that memory is its own and a lack of it ends nothing else. The
process tells what it has found after each batch: when a larger one ends it, the smaller ones stand.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench.environment import Hardware, count_cores
from bench.errors import UserError
from bench.estimate import Workload, estimate, format_seconds, workers_of
from bench.spec import Profile, Recipe, RunSpec

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.table import Table
    from torch import nn

    from bench.interface import Batch
    from bench.plan import Plan

BATCHES = (1, 2, 4, 8)  # images; more are not tried than a step has
STEPS = 3  # that are timed, after one to warm up
LIMIT = 60.0  # seconds of one method after which no larger batch is begun; two images then have one step, for memory
STOPS_AT = 600.0  # seconds until a method's process is ended
PROCESS = ("-m", "bench.measured_cost")
GIB = 2**10  # MiB


@dataclass(frozen=True)
class Measured:
    """Of one method at the recipe's image size: seconds in the largest batch that was timed, memory in the largest that
    was tried.

    peak_mib: the peak of a training step of `batch_images`; image_mib: how much another image adds to it; None where
    the system keeps no peak, or only one image was tried. ended: what went wrong with a larger batch, "" if nothing.
    """

    batch_images: int
    train_image: float  # s per image of a training step
    predict_image: float  # s per image without gradients, all its prompts together
    peak_mib: float | None
    image_mib: float | None
    device: str
    ended: str = ""


def show_measured(plan: Plan, todo: Sequence[RunSpec], console: Console) -> None:
    """Measures the methods of the trials `todo`, and prints time and memory of each and of all of them."""
    from bench.terminal import progress_bar

    representatives = {(spec.row, spec.backbone): spec for spec in todo if spec.recipe is not None}
    found: dict[tuple[str, str], Measured | str] = {}
    threads = int(max(1, min(plan.choice.profile.cpus_per_trial, count_cores())))
    with progress_bar(console, "measuring") as on_progress:
        for number, (key, spec) in enumerate(representatives.items(), start=1):
            found[key] = measure_apart(spec, threads)
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
            images = images_at_once(trials[0], plan.choice.profile, plan.choice.hardware)
            cells += [_gib(peak_of(images, measured), images), hours]
        else:
            cells = ["-", "-", measured or "-", f"{hours} (by table)"]
        rows.append([*key, str(len(trials)), *cells])
    names = ["method", "backbone", "trials", "s an image", "peak, GiB (images)", "of a worker", "a trial"]
    return text_table(names, rows)


def in_words(plan: Plan, todo: Sequence[RunSpec], found: dict[tuple[str, str], Measured | str]) -> list[str]:
    """The lines below the table: the sums, and what the numbers are of."""
    sums = {True: 0.0, False: 0.0}
    for spec in todo:
        measured = found.get((spec.row, spec.backbone))
        sums[isinstance(measured, Measured)] += seconds_of(spec, plan, measured)
    known = {key: measured for key, measured in found.items() if isinstance(measured, Measured)}
    profile, lines = plan.choice.profile, []
    if known:
        devices = ", ".join(sorted({measured.device for measured in known.values()}))
        lines += [
            f"all trials that were measured: about {_hours(sums[True])} of {devices}",
            f"measured on {devices}: the median of {STEPS} training steps and of as many predictions, random images; "
            "another device has other numbers. Memory of more images than were measured is that of these and a share "
            "for each further one",
        ]
        if plan.choice.hardware.nodes:
            lines.append(
                "measured on the machine of this command, not on the cluster's nodes: for theirs call --measure on one "
                f"of them, with --profile {profile.name} and without --address"
            )
        if profile.workers_per_trial > 1:
            lines.append(f"the profile's {profile.workers_per_trial} workers of a trial share its hours")
    for (row, backbone), measured in known.items():
        if measured.ended:
            lines.append(f"{row}, {backbone}: no larger batch was measured: {measured.ended}")
    if sums[False]:
        where = "a GPU, scaled from a core" if plan.choice.hardware.gpus else "a core"
        lines.append(
            f"(by table): not measured, about {_hours(sums[False])} of {where}, by what experiments/costs.py says of "
            "256 px"
        )
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


def images_at_once(spec: RunSpec, profile: Profile, hardware: Hardware) -> int:
    """How many images one of the workers that there is room for has in memory in a training step."""
    assert spec.recipe is not None
    share = -(-spec.recipe.batch_images // workers_of(profile, hardware))
    return min(share, profile.micro_batch or share)


def peak_of(images: int, measured: Measured) -> float | None:
    """MiB of a training step with so many images at once; None where no growth is known."""
    if images == measured.batch_images:
        return measured.peak_mib
    if measured.peak_mib is None or measured.image_mib is None:
        return None
    return measured.peak_mib + max(0, images - measured.batch_images) * measured.image_mib


def measure_apart(spec: RunSpec, threads: int = 1) -> Measured | str:
    """The last of `measure` in a process of its own, which has as many threads as a trial has; in words why there is
    nothing.
    """
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    command = [sys.executable, *PROCESS]
    try:
        done = subprocess.run(
            command,
            input=spec.model_dump_json(),
            env=environment,
            capture_output=True,
            text=True,
            timeout=STOPS_AT,
            check=False,
        )
    except subprocess.TimeoutExpired as stopped:
        return outcome((stopped.stdout or b"").decode(), f"not measured within {format_seconds(STOPS_AT)}")
    if done.returncode == 0:
        return outcome(done.stdout, "")
    if done.returncode < 0:
        return outcome(done.stdout, f"ended by signal {-done.returncode}: out of memory, it seems")
    return outcome(done.stdout, (done.stderr.strip().splitlines() or ["no message"])[-1][:120])


def outcome(output: str, ended: str) -> Measured | str:
    """The last whole line that the process wrote, with what `ended` it; without a line only that."""
    for line in reversed(output.splitlines()):
        with contextlib.suppress(ValueError, TypeError):
            found = Measured(**json.loads(line))
            return replace(found, ended=found.ended or ended)
    return ended or "no answer"


def measure(spec: RunSpec) -> Iterator[Measured]:
    """Real training steps of the spec's model (random weights and images) in growing batches, as long as they fit; what
    is known after each.

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
    step = training_step(model, model.parameters(), recipe)
    started = time.perf_counter()
    found: Measured | None = None
    for images in BATCHES:
        late = time.perf_counter() - started > LIMIT
        if images > recipe.batch_images or (late and images > 2):
            break
        batch = random_batch(images, recipe.prompts_per_image, recipe.image_size, device)
        model.train()
        restart_peak(device)
        try:
            # two images for the memory alone: the time of one is known
            seconds = timed(partial(step, batch), 0 if late and found else STEPS)
        except (RuntimeError, MemoryError) as error:
            if found is None:
                raise
            yield replace(found, ended=f"{images} images: {' '.join(str(error).split())[:80]}")
            break
        peak = peak_memory_mib(device).get("peak_memory_mib")
        if found is None:
            first, predict = peak, timed(prediction(model, batch, spec))
            found = Measured(images, seconds / images, predict, peak, None, _device(device))
        else:
            grows = None if peak is None or first is None else max(0.0, (peak - first) / (images - 1))
            pace = found.train_image if seconds is None else seconds / images
            found = replace(found, batch_images=images, train_image=pace, peak_mib=peak, image_mib=grows)
        yield found


def timed(call: Callable[[], object], times: int = STEPS) -> float | None:
    """Median seconds of some calls after one to warm up; None where that is the only one."""
    from bench.profiling.measure import synchronise

    seconds = []
    for _ in range(1 + times):
        start = time.perf_counter()
        call()
        synchronise()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:]) if times else None


def training_step(
    forward: Callable[..., torch.Tensor], parameters: Iterable[nn.Parameter], recipe: Recipe
) -> Callable[[Batch], None]:
    """A step on a batch as `bench.train` does it, with the recipe's optimiser; `forward` is a model or as one."""
    import torch
    from torch import nn

    from bench.train import attention_kernels, batch_loss

    parameters = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, fused=True)

    def step(batch: Batch) -> None:
        device = batch.images.device
        generator = torch.Generator(device).manual_seed(0)
        with attention_kernels(device, recipe):
            batch_loss(forward, batch, recipe.precision, generator).backward()
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


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else format_seconds(seconds)


def _device(device: torch.device) -> str:
    import platform

    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {threads} thread{'s' * (threads != 1)})"


def _gib(mib: float | None, images: int) -> str:
    return "-" if mib is None else f"{mib / GIB:.1f} ({images})"


def main() -> None:
    """The spec on stdin, what is known after each batch as lines on stdout."""
    spec = RunSpec.model_validate_json(sys.stdin.read())
    with contextlib.suppress(OSError):  # Linux: where memory runs out, this process goes and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        for found in measure(spec):
            print(json.dumps(asdict(found)), flush=True)
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
