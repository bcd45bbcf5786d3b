"""The experts of nnU-Net: which cases each has, how a budget cuts its plan, and what is left of a trained one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.atomic import read_json
from bench.errors import UserError
from bench.interface import Sample
from bench.spec import NnunetBudget

LOG = "nnunet.log"  # of each expert, in its folder
SMALLEST_EDGE = 4  # px at the deepest stage: nnU-Net's UNet_featuremap_min_edge_length


def plan_experts(
    train: Sequence[Sample], val: Sequence[Sample], budget: NnunetBudget, seed: int, multiclass: bool = False
) -> list[dict]:
    """The worker's description of each expert: one per (data set, object) of `train`, with its cases.

    `multiclass`: one per data set, for all its objects. An expert without a validation mask is validated on its
    training cases (nnU-Net needs some); then nothing is selected on them. `key` is a hash of all that the expert
    depends on.
    """
    experts: dict[tuple[str, ...], dict] = {}
    numbers: dict[tuple[str, str], str] = {}
    images: dict[str, list[str]] = {}
    for part, samples in (("train", train), ("val", val)):
        for sample in samples:
            case = numbers.setdefault((sample.dataset, sample.image_id), f"case_{len(numbers):05d}")
            image_file = str(sample.image_file.resolve())
            images.setdefault(sample.dataset, []).append(image_file)
            for target in sample.targets:
                key = (sample.dataset,) if multiclass else (sample.dataset, target.object)
                if part == "train":
                    expert = experts.setdefault(key, {"dataset": sample.dataset, "objects": [], "cases": []})
                    if target.object not in expert["objects"]:
                        expert["objects"].append(target.object)
                elif target.object not in experts.get(key, {"objects": ()})["objects"]:
                    continue
                cases = experts[key]["cases"]
                if not cases or cases[-1]["id"] != case:
                    ids = {"id": case, "image_id": sample.image_id}
                    cases.append({**ids, "image_file": image_file, "masks": {}, "splits": [part]})
                cases[-1]["masks"][target.object] = str(target.mask_file.resolve())
    datasets = list(images)
    for number, (key, expert) in enumerate(experts.items(), start=1):
        expert["validated"] = any("val" in case["splits"] for case in expert["cases"])
        if not expert["validated"]:
            for case in expert["cases"]:
                case["splits"].append("val")
        expert["name"] = f"Dataset{number:03d}_" + re.sub(r"\W+", "-", "-".join(key))
        expert["title"] = key[-1]
        expert["images"] = f"images{datasets.index(expert['dataset']):03d}"
        cases = [[case["image_id"], case["splits"], list(case["masks"])] for case in expert["cases"]]
        text = json.dumps([expert["dataset"], expert["objects"], cases, budget.model_dump(), seed])
        expert["key"] = hashlib.sha256(text.encode()).hexdigest()
        expert["image_files"] = images[expert["dataset"]]
    return list(experts.values())


def apply_budget(configuration: dict, budget: dict) -> None:
    """Writes a budget's batch_size, patch_size (px) and features (channels per stage) into a 2d plan.

    The patch never exceeds nnU-Net's own, which it derives from the image size; it is rounded down to what
    the strides divide, and stages whose feature map would be under 4 px are left out, as nnU-Net's planner
    does. Three stages are the least: with two, nnU-Net's weights of the deep supervision are 0 / 0. Raises
    ValueError for less.
    """
    if budget["batch_size"] is not None:
        configuration["batch_size"] = budget["batch_size"]
    if budget["patch_size"] is None and budget["features"] is None:
        return
    network = configuration["architecture"]["arch_kwargs"]
    if budget["features"] is not None:
        stages = len(budget["features"])
        network["features_per_stage"] = list(budget["features"])
        network["strides"] = [[1, 1]] + [[2, 2]] * (stages - 1)
        network["kernel_sizes"] = [[3, 3]] * stages
        network["n_conv_per_stage"] = [2] * stages
    patch = np.array(configuration["patch_size"])
    if budget["patch_size"] is not None:
        patch = np.minimum(patch, budget["patch_size"])
    stages = len(network["strides"])
    while stages > 1 and (patch // np.prod(network["strides"][:stages], axis=0) < SMALLEST_EDGE).any():
        stages -= 1
    if stages < 3:
        raise ValueError(f"nnU-Net needs three stages, so patches of 16 px or more, and features for them: {patch}")
    for field in ("features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage"):
        network[field] = network[field][:stages]
    network["n_stages"] = stages
    network["n_conv_per_stage_decoder"] = [2] * (stages - 1)
    divisor = np.prod(network["strides"], axis=0)
    configuration["patch_size"] = (patch // divisor * divisor).tolist()


def is_full(budget: NnunetBudget) -> bool:
    """Whether the budget leaves nnU-Net's own plan as it is; then its way of predicting stays, too."""
    return budget.batch_size is None and budget.patch_size is None and budget.features is None


def read_summary(folder: Path, key: str) -> dict | None:
    """expert.json of a finished expert; None if unfinished or trained on other cases or another budget."""
    file = folder / "expert.json"
    if not file.exists() or not (folder / "weights.pt").exists():
        return None
    summary = read_expert(file)
    return summary if summary["key"] == key else None


def read_expert(file: Path) -> dict:
    """expert.json; UserError for one that `baselines.nnunet_worker` has not written."""
    fix = f"delete {file.parent} and run the suite again"
    summary = read_json(file, fix)
    kinds = {"key": str, "dataset": str, "objects": list}
    if not isinstance(summary, dict) or any(not isinstance(summary.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{file} describes no expert: {fix}")
    return summary
