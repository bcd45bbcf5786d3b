"""What nnU-Net reads: raw data sets of our cases in its layout, planned and preprocessed by its own classes."""

# ruff: noqa: SIM112 (the names of nnU-Net's environment variables are its own)

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from baselines.nnunet_experts import apply_budget
from bench.data.dataset import load_image, load_mask


def read_image(file: str) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8; an image whose channels are equal is grey. Raises UserError."""
    pixels = load_image(Path(file))
    grey = pixels[..., 0]
    return grey if (pixels == grey[..., None]).all() else pixels


def as_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """`image` (H, W) or (H, W, 3) with 1 channel (H, W) or 3 channels (H, W, 3)."""
    if image.ndim == 2 and channels == 3:
        return np.repeat(image[..., None], 3, axis=2)
    if image.ndim == 3 and channels == 1:
        # a coloured test image of a grey data set
        return np.asarray(Image.fromarray(image).convert("L"))
    return image


def write_raw(expert: dict) -> int:
    """Writes one expert as an nnU-Net raw data set and returns its number of channels (1 or 3).

    The images lie once per data set, whichever of its experts comes first; dataset.json names each case's
    files (nnU-Net's `dataset` key), so that an expert sees exactly the cases that have its target, and no
    other.
    """
    raw = Path(os.environ["nnUNet_raw"])
    folder = raw / expert["name"]
    (folder / "labelsTr").mkdir(parents=True, exist_ok=True)
    images = raw / expert["images"]
    images.mkdir(exist_ok=True)
    channels_file = images / "channels"
    if channels_file.exists():
        channels = int(channels_file.read_text())
    else:
        channels = max(3 if read_image(file).ndim == 3 else 1 for file in expert["image_files"])
        channels_file.write_text(str(channels))
    cases = {}
    for case in expert["cases"]:
        image = images / f"{case['id']}.png"
        if not image.exists():
            Image.fromarray(as_channels(read_image(case["image_file"]), channels)).save(image, compress_level=1)
        label = folder / "labelsTr" / f"{case['id']}.png"
        Image.fromarray(label_map(case["masks"], expert["objects"])).save(label, compress_level=1)
        cases[case["id"]] = {"images": [f"../{images.name}/{image.name}"], "label": f"labelsTr/{label.name}"}
    description = {
        "channel_names": {"0": "grey"} if channels == 1 else {"0": "R", "1": "G", "2": "B"},
        # numbered, for nnU-Net has a meaning of its own for names such as "ignore"
        "labels": {"background": 0} | {f"{n} {name}": n for n, name in enumerate(expert["objects"], start=1)},
        "numTraining": len(cases),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "dataset": cases,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return channels


def label_map(masks: dict[str, str], objects: list[str]) -> np.ndarray:
    """(H, W) uint8, 0 background, i + 1 where `objects[i]` is; `masks`: object -> mask file.

    Where masks meet, the smaller object has the pixel. Raises UserError for an unreadable mask.
    """
    loaded = {name: load_mask(Path(file)) for name, file in masks.items()}
    labels = np.zeros(next(iter(loaded.values())).shape, np.uint8)
    for name in sorted(loaded, key=lambda name: -loaded[name].sum()):
        labels[loaded[name]] = objects.index(name) + 1
    return labels


class SerialPool:
    """What nnU-Net uses of multiprocessing.Pool, in this process: a spawned worker re-imports all, 5-17 s."""

    def __init__(self, processes: int | None = None) -> None:
        self._pool: list = []

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def starmap_async(self, function: Callable, arguments: Any) -> SimpleNamespace:
        """Calls `function` now; the result is ready at once."""
        results = self.starmap(function, arguments)
        return SimpleNamespace(ready=lambda: True, get=lambda: results)

    def starmap(self, function: Callable, arguments: Any) -> list:
        """Calls `function` now."""
        return [function(*row) for row in arguments]


def work_serially() -> None:
    """Replaces the process pools of nnU-Net's planning, preprocessing and postprocessing by `SerialPool`."""
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.postprocessing import remove_connected_components
    from nnunetv2.preprocessing.preprocessors import default_preprocessor

    context = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=SerialPool))
    for module in (fingerprint_extractor, default_preprocessor, remove_connected_components, evaluate_predictions):
        module.multiprocessing = context


def prepare(expert: dict, budget: dict, processes: int) -> dict:
    """Fingerprint, plan, budget, split and preprocessing of an expert by nnU-Net's own classes; the plans.

    `processes` 0 works in this process. The fingerprint's foreground intensities are drawn from 10^6 instead
    of 10^8 pixels: only CT normalisation reads them, and PNG channels are z-scored image by image, so the
    plans' other fields and the preprocessed files stay the same.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    name = expert["name"]
    if processes == 0:
        work_serially()
    extractor = DatasetFingerprintExtractor(name, max(1, processes))
    extractor.show_progress_bar = False
    extractor.num_foreground_voxels_for_intensitystats = 1e6
    extractor.run(overwrite_existing=True)
    planner = ExperimentPlanner(name)
    planner.plan_experiment()
    folder = Path(os.environ["nnUNet_preprocessed"]) / name
    plans_file = folder / f"{planner.plans_identifier}.json"
    plans = json.loads(plans_file.read_text())  # as nnU-Net reads it: lists and floats instead of numpy's
    apply_budget(plans["configurations"]["2d"], budget)
    plans_file.write_text(json.dumps(plans, indent=2))
    split = {part: [case["id"] for case in expert["cases"] if part in case["splits"]] for part in ("train", "val")}
    (folder / "splits_final.json").write_text(json.dumps([split]))
    preprocessor = DefaultPreprocessor(verbose=False)
    preprocessor.show_progress_bar = False
    preprocessor.run(name, "2d", planner.plans_identifier, max(1, processes))
    return plans
