"""A trained expert as nnU-Net applies it, its postprocessing, and what it costs."""

# ruff: noqa: SIM112 (the names of nnU-Net's environment variables are its own)

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from baselines.nnunet_data import as_channels, read_image
from baselines.nnunet_trainer import trainer_class
from bench.atomic import read_json
from bench.errors import UserError

POSTPROCESSING = "postprocessing.json"
# what nnU-Net's default planner writes into a plan of 2D images
NETWORKS = ("dynamic_network_architectures.architectures.unet.PlainConvUNet",)
LAYERS = {"torch.nn.modules.conv.Conv2d", "torch.nn.modules.instancenorm.InstanceNorm2d", "torch.nn.LeakyReLU"}
REPEATS = 5  # timed predictions of one image, after one that warms up


class ExpertSegmenter:
    """A trained expert as nnU-Net applies it: its own sliding window, Gaussian weights, postprocessing."""

    def __init__(self, folder: Path, tile_step: float) -> None:
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        written = read_json(folder / "plans.json", f"delete {folder} and run the suite again")
        check_architecture(written, folder / "plans.json")
        plans = PlansManager(written)
        dataset_json = json.loads((folder / "dataset.json").read_text())
        self.channels = len(dataset_json["channel_names"])
        configuration = plans.get_configuration("2d")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        weights = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
        heads = plans.get_label_manager(dataset_json).num_segmentation_heads
        trainer = trainer_class()
        network = trainer.build_network_architecture(
            plans, configuration, self.channels, heads, enable_deep_supervision=False
        )
        # use_mirroring: trained without, so nnU-Net's trainer allows none here
        self.predictor = nnUNetPredictor(
            tile_step_size=tile_step,
            use_gaussian=True,
            use_mirroring=False,
            perform_everything_on_device=True,
            device=device,
            allow_tqdm=False,
        )
        name = trainer.__name__
        self.predictor.manual_initialization(network, plans, configuration, [weights], dataset_json, name, None)
        self.postprocessing = json.loads((folder / POSTPROCESSING).read_text())

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """`image` (H, W) or (H, W, 3) uint8 -> labels (H, W) uint8 at the same size."""
        from nnunetv2.postprocessing.remove_connected_components import (
            remove_all_but_largest_component_from_segmentation,
        )

        pixels = as_channels(image, self.channels)
        # NaturalImage2DIO's order: (channels, 1, H, W) float32
        array = (pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1))[:, None].astype(np.float32)
        labels = self.predictor.predict_single_npy_array(array, {"spacing": (999, 1, 1)}, None, None, False)
        for step in self.postprocessing:
            labels = remove_all_but_largest_component_from_segmentation(labels, **step)
        return labels[0].astype(np.uint8)


def check_architecture(plans: Any, file: Path) -> None:
    """UserError where plans name another network or layer than nnU-Net's planner does.

    nnU-Net imports what stands there and calls it with the arguments that stand beside: anybody's code, in a folder
    of somebody else.
    """
    try:
        for configuration in plans["configurations"].values():
            network = configuration["architecture"]
            imported = [network["arch_kwargs"][name] for name in network["_kw_requires_import"]]
            if network["network_class_name"] not in NETWORKS or not set(filter(None, imported)) <= LAYERS:
                raise UserError(f"{file} names another network than nnU-Net's planner: delete its folder and run again")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} has no usable {error}: delete its folder and run the suite again") from None


def find_postprocessing(expert: dict, segmenter: ExpertSegmenter, processes: int) -> list[dict]:
    """nnU-Net's choice on the validation cases: [{"labels_or_regions": ...}, ...], often none.

    Its rule: all but the largest component is removed where that raises the mean Dice, of all foreground and then of
    each label. It asks this of five folds' validation cases; there is one fold here.
    """
    from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

    folder = Path(os.environ["nnUNet_results"]) / f"{expert['name']}-validation"
    predicted, truth = folder / "predicted", folder / "truth"
    predicted.mkdir(parents=True)
    truth.mkdir()
    for case in expert["cases"]:
        if "val" in case["splits"]:
            name = f"{case['id']}.png"
            Image.fromarray(segmenter(read_image(case["image_file"]))).save(predicted / name, compress_level=1)
            label = Path(os.environ["nnUNet_raw"]) / expert["name"] / "labelsTr" / name
            shutil.copyfile(label, truth / name)
    manager = segmenter.predictor.plans_manager
    dataset_json = segmenter.predictor.dataset_json
    determine_postprocessing(str(predicted), str(truth), manager.plans, dataset_json, max(1, processes), False)
    chosen = json.loads((predicted / "postprocessing.json").read_text())
    shutil.rmtree(folder)
    return chosen["postprocessing_kwargs"]


def inference_cost(segmenter: ExpertSegmenter, image: np.ndarray) -> dict[str, float]:
    """gflop (all tiles of the image) and milliseconds (median) of one image's labels, decoding left out."""
    from torch.utils.flop_counter import FlopCounterMode

    # torch's own counter: nnU-Net predicts in inference mode, where `bench.profiling.measure` sees no convolution
    with FlopCounterMode(display=False) as counter:
        segmenter(image)
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        segmenter(image)
        times.append(time.perf_counter() - started)
    return {"gflop": counter.get_total_flops() / 1e9, "milliseconds": 1e3 * median(times[1:])}
