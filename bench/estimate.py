"""How long a suite will take: costs per step, measured once (`experiments.costs`), times what the specs ask
for.

An estimate, printed as one: it knows nothing of a busy machine. During a run the display replaces it by what
the trials really do.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, TypeVar

from bench.environment import Hardware
from bench.errors import UserError
from bench.spec import PhantomSize, Profile, RunSpec
from experiments.costs import (
    BACKBONE_FACTOR,
    COSTS,
    GPU_SPEEDUP,
    REFERENCE_SIZE,
    UNKNOWN,
    NnunetCost,
    PlainCost,
    PretrainedCost,
    TrainedCost,
)

if TYPE_CHECKING:
    from bench.data.splits import Splits


GIB = 2**30
Job = TypeVar("Job")


@dataclass(frozen=True)
class Workload:
    """The sizes of a split that cost time. `experts` maps (data set, object) to its number of training
    images.
    """

    train_images: int
    val_images: int
    test_images: int
    test_prompts: int
    experts: dict[tuple[str, str], int]
    image_size: float  # px, side of a square of the mean image's area


def workload_of(splits: Splits) -> Workload:
    """Counts a split."""
    experts: dict[tuple[str, str], int] = {}
    for sample in splits.train:
        for target in sample.targets:
            key = (sample.dataset, target.object)
            experts[key] = experts.get(key, 0) + 1
    return Workload(
        train_images=len(splits.train),
        val_images=len(splits.val),
        test_images=len(splits.test),
        test_prompts=sum(len(sample.targets) for sample in splits.test),
        experts=experts,
        image_size=(sum(s.height * s.width for s in splits.train) / len(splits.train)) ** 0.5,
    )


def phantom_workload(size: PhantomSize, objects: dict[str, tuple[str, ...]], val_fraction: float = 0.2) -> Workload:
    """The same for a phantom that is not generated yet: every object taken to be on every slice, an upper
    bound.
    """
    train = size.patients * size.slices
    test = size.test_patients * size.slices
    kept = round(train * (1 - val_fraction))
    return Workload(
        train_images=kept * len(objects),
        val_images=(train - kept) * len(objects),
        test_images=test * len(objects),
        test_prompts=sum(test * len(names) for names in objects.values()),
        experts={(dataset, name): kept for dataset, names in objects.items() for name in names},
        image_size=size.image_size,
    )


def estimate(spec: RunSpec, splits: Splits | Workload, hardware: Hardware, workers: int = 1) -> float:
    """Seconds that one trial takes when it has a core (or GPU) to itself, or each of its `workers` one."""
    work = splits if isinstance(splits, Workload) else workload_of(splits)
    cost = COSTS.get(spec.method, UNKNOWN)
    speed = 1 / GPU_SPEEDUP if hardware.gpus else 1.0
    if isinstance(cost, NnunetCost) and spec.nnunet is not None:
        return _nnunet_seconds(spec, work, cost, speed)
    if isinstance(cost, TrainedCost) and spec.recipe is not None:
        return _trained_seconds(spec, work, cost, speed, workers)
    if isinstance(cost, PretrainedCost):
        seconds = cost.predict_image * work.test_images + cost.predict_prompt * work.test_prompts
        return cost.startup + seconds * speed
    plain = cost if isinstance(cost, PlainCost) else PlainCost(cost.startup, 0.0, cost.predict_prompt)
    area = _area(work.image_size)
    return plain.startup + area * (plain.train_image * work.train_images + plain.predict_prompt * work.test_prompts)


def is_guess(spec: RunSpec, hardware: Hardware) -> bool:
    """Whether the estimate is of another model or machine than `experiments.costs` was measured with."""
    from experiments.profiles import LAPTOP

    size = {"width", "layers", "queries"}
    other = spec.model is not None and spec.model.model_dump(include=size) != LAPTOP.model.model_dump(include=size)
    return spec.recipe is not None and (other or spec.backbone not in LAPTOP.backbones or bool(hardware.gpus))


def _trained_seconds(spec: RunSpec, work: Workload, cost: TrainedCost, speed: float, workers: int) -> float:
    recipe = spec.recipe
    area = _area(recipe.image_size) * speed * BACKBONE_FACTOR.get(spec.backbone, 1.0)
    validations = max(1, recipe.steps // max(1, recipe.validate_every))
    shared = cost.train_image * recipe.steps * recipe.batch_images + cost.validate_image * validations * work.val_images
    return cost.startup + area * (shared / workers + cost.predict_prompt * work.test_prompts)


def _nnunet_seconds(spec: RunSpec, work: Workload, cost: NnunetCost, speed: float) -> float:
    budget = spec.nnunet
    patch = min(budget.patch_size or work.image_size, work.image_size)
    images = _images_of_models(spec, work)
    iterations = len(images) * budget.epochs * budget.iterations_per_epoch
    # nnU-Net's own batch for a 2D plan of this size is about a dozen
    train = cost.train_patch * iterations * (budget.batch_size or 12) * _area(patch) * speed
    area = _area(work.image_size)
    prepare = cost.prepare_image * sum(images) * area
    predict = cost.predict_prompt * work.test_prompts * area * speed
    return cost.startup + cost.expert_startup * len(images) + prepare + train + predict


def _images_of_models(spec: RunSpec, work: Workload) -> list[int]:
    """The training images of each of nnU-Net's models. Of a multi-class one, those of its most frequent object: at
    least so many.
    """
    if spec.method != "nnunet_multiclass":
        return list(work.experts.values())
    images: dict[str, int] = {}
    for (dataset, _), count in work.experts.items():
        images[dataset] = max(images.get(dataset, 0), count)
    return list(images.values())


def _area(side: float) -> float:
    return (side / REFERENCE_SIZE) ** 2


def lanes(profile: Profile, hardware: Hardware) -> int:
    """How many trials run side by side, on all nodes together: what the scarcest of CPUs, GPUs and memory allows."""
    return max(1, _rooms(profile, hardware) // workers_of(profile, hardware))


def workers_of(profile: Profile, hardware: Hardware) -> int:
    """How many processes train one trial: the profile's number, where there is room for so many at once, and an image
    of the batch for each. Fewer have more of it each.
    """
    return max(1, min(profile.workers_per_trial, _rooms(profile, hardware), profile.recipe.batch_images))


def check_workers(profile: Profile, hardware: Hardware, storage: str | None) -> None:
    """UserError where several workers are to train a trial and could not: with no folder that all see, or on shares of
    a GPU.
    """
    count = workers_of(profile, hardware)
    if count == 1:
        return
    what = f"profile {profile.name} trains a trial on {count} workers"
    if storage is not None:
        raise UserError(
            f"{what}, which share its folder: train it on one with --set workers_per_trial=1, or leave --storage out "
            "and give --runs-dir a folder that all nodes see"
        )
    share = resources(profile.cpus_per_trial, profile.gpus_per_trial, profile.memory_gib_per_trial, hardware).get("gpu")
    if share is not None and share < 1:
        raise UserError(
            f"{what} with {share:g} of a GPU each, and NCCL refuses two of them on one GPU: give each its own with "
            "--set gpus_per_trial=1, or train it on one with --set workers_per_trial=1"
        )


def _rooms(profile: Profile, hardware: Hardware) -> int:
    """How many workers there is room for."""
    wanted = resources(profile.cpus_per_trial, profile.gpus_per_trial, profile.memory_gib_per_trial, hardware)
    rooms = 0
    for node in hardware.nodes or (hardware,):
        there = {"cpu": node.cores, "gpu": len(node.gpus), "memory": node.memory_gib * GIB}
        rooms += int(min(there[name] / amount for name, amount in wanted.items()))
    return rooms


def resources(cpus: float, gpus: float, memory_gib: float, hardware: Hardware) -> dict[str, float]:
    """What one trial, or one part of it, reserves in Ray's terms (memory in bytes), never more than a machine has: it
    would wait for ever. Where some nodes have GPUs and it wants one, those are the machines.
    """
    nodes = hardware.nodes or (hardware,)
    if gpus and hardware.gpus:
        nodes = [node for node in nodes if node.gpus]
    largest = max(nodes, key=lambda node: (len(node.gpus), node.cores, node.memory_gib))
    found: dict[str, float] = {"cpu": min(cpus, largest.cores)}
    if gpus and hardware.gpus:
        found["gpu"] = min(gpus, len(largest.gpus))
    if memory_gib:
        found["memory"] = int(min(memory_gib, largest.memory_gib) * GIB)
    return found


def schedule(seconds: Sequence[float], lane_count: int) -> float:
    """Wall seconds when the jobs start in the order given, each on the first free lane."""
    free = [0.0] * max(1, lane_count)
    for job in seconds:
        heapq.heappush(free, heapq.heappop(free) + job)
    return max(free)


def running_order(specs: Sequence[RunSpec], splits: Splits | Workload, hardware: Hardware) -> list[RunSpec]:
    """The order in which trials begin: `seed_by_seed` of their estimates."""
    return seed_by_seed(specs, lambda spec: spec.seed, lambda spec: estimate(spec, splits, hardware))


def seed_by_seed(jobs: Sequence[Job], seed: Callable[[Job], int], seconds: Callable[[Job], float]) -> list[Job]:
    """The seeds in the order in which they come, so that what is stopped after one is a whole comparison; within a seed
    the longest first, so that the lanes end close together (equal costs keep their order).
    """
    seeds = [seed(job) for job in jobs]
    return sorted(jobs, key=lambda job: (seeds.index(seed(job)), -seconds(job)))


def estimate_suite(specs: Sequence[RunSpec], splits: Splits | Workload, profile: Profile, hardware: Hardware) -> float:
    """Wall seconds for all trials on the profile's lanes in `running_order`; nnU-Net's experts spread over them."""
    work = splits if isinstance(splits, Workload) else workload_of(splits)
    count = lanes(profile, hardware)
    jobs: list[tuple[int, float]] = []  # seed and seconds
    for spec in specs:
        spreads = isinstance(COSTS.get(spec.method), NnunetCost)
        shares = min(count, len(_images_of_models(spec, work))) if spreads else 1
        seconds = estimate(spec, work, hardware, workers_of(profile, hardware)) / shares
        jobs += [(spec.seed, seconds)] * shares
    return schedule([seconds for _, seconds in seed_by_seed(jobs, itemgetter(0), itemgetter(1))], count)


def format_seconds(seconds: float) -> str:
    """ "45 s", "12 min", "3 h 05 min": as exact as an estimate deserves."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
