"""The child process of `baselines.nnunet`: runs the real nnU-Net on the jobs its parent writes.

`python -m baselines.nnunet_worker JOB.json` trains or applies all experts of a run one after the other
(importing nnunetv2 costs seconds, so once is enough). Events go to stdout as JSON lines; nnU-Net's own prints
go to stderr. The process ends when its stdin closes, so that it never outlives the parent.
"""

# ruff: noqa: SIM112 (the names of nnU-Net's environment variables are its own)

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from baselines.nnunet import apply_budget
from bench.atomic import write_file, write_json
from bench.data.dataset import load_image, load_mask

Emit = Callable[..., None]


def set_environment(job: dict) -> None:
    """nnU-Net is configured by the environment; part of it is read at import, so this comes first."""
    scratch = Path(job["folder"]) / "scratch"
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(scratch / name)
    os.environ["nnUNet_def_n_proc"] = str(max(1, job["threads"]))
    # planning hands this number to torch.set_num_threads, so it may not be 0 there
    os.environ["nnUNet_n_proc_DA"] = "1"
    os.environ["nnUNet_compile"] = "f"  # minutes of compilation for a network that is trained for seconds
    os.environ["nnUNet_wandb_enabled"] = "0"


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
        Image.fromarray(load_mask(Path(case["mask_file"])).astype(np.uint8)).save(label, compress_level=1)
        cases[case["id"]] = {"images": [f"../{images.name}/{image.name}"], "label": f"labelsTr/{label.name}"}
    description = {
        "channel_names": {"0": "grey"} if channels == 1 else {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "object": 1},
        "numTraining": len(cases),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "dataset": cases,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return channels


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
        results = [function(*row) for row in arguments]
        return SimpleNamespace(ready=lambda: True, get=lambda: results)


def work_serially() -> None:
    """Replaces the process pools of nnU-Net's fingerprint and preprocessing modules by `SerialPool`."""
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.preprocessing.preprocessors import default_preprocessor

    context = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=SerialPool))
    fingerprint_extractor.multiprocessing = context
    default_preprocessor.multiprocessing = context


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


def trainer_class() -> type:
    """nnU-Net's trainer without mirroring, reporting and without plots.

    A mirrored left kidney is a right one: nnU-Net ships this trainer for such objects, and every expert gets it. A
    function, as importing nnU-Net takes seconds.
    """
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
        nnUNetTrainerNoMirroring,
    )

    class BudgetTrainer(nnUNetTrainerNoMirroring):
        """Network, loss, deep supervision, augmentation, oversampling, optimiser and schedule: nnU-Net's."""

        on_iteration: Callable[[int], None]
        on_epoch: Callable[[int, dict], None]

        # nnU-Net reads these names from the signature, so *args would not do
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.iterations = 0
            # drawing progress.png takes seconds an epoch; the curves go to the parent instead
            self.logger.plot_progress_png = lambda *_: None

        def plot_network_architecture(self):
            """Nothing: needs a package that is not there."""

        def _save_debug_information(self):
            """Nothing: it would write the machine's name into the run."""

        def train_step(self, batch):
            """nnU-Net's step, counted."""
            result = super().train_step(batch)
            self.iterations += 1
            self.on_iteration(self.iterations)
            return result

        def on_epoch_end(self):
            """nnU-Net's, then the report of the epoch's point of the curves."""
            super().on_epoch_end()
            latest = {
                key: self.logger.get_value(key, -1) for key in ("train_losses", "val_losses", "mean_fg_dice", "lrs")
            }
            self.on_epoch(self.iterations, {key: float(value) for key, value in latest.items()})

    return BudgetTrainer


def check_cases(trainer: Any, expert: dict) -> None:
    """Asserts that nnU-Net trains and validates on exactly our cases and has seen no other.

    (If the asked fold were not in splits_final.json, it would note it and draw a random split of its own.)
    """
    wanted = {part: [case["id"] for case in expert["cases"] if part in case["splits"]] for part in ("train", "val")}
    train, val = trainer.do_split()
    assert list(train) == wanted["train"], f"{expert['name']}: nnU-Net would train on other cases"
    assert list(val) == wanted["val"], f"{expert['name']}: nnU-Net would validate on other cases"
    present = set(trainer.dataset_class.get_identifiers(trainer.preprocessed_dataset_folder))
    assert present == set(train) | set(val), f"{expert['name']}: foreign cases among nnU-Net's: {present}"
    for part, loader in (("train", trainer.dataloader_train), ("val", trainer.dataloader_val)):
        if loader is not None:  # the loaders as they were used
            loader = getattr(loader, "data_loader", getattr(loader, "generator", None))
            assert set(loader.indices) == set(wanted[part]), f"{expert['name']}: nnU-Net drew other {part} cases"


def train(expert: dict, job: dict, emit: Emit) -> dict:
    """Trains one expert and keeps weights, plans, dataset.json, split and expert.json, which it returns."""
    import torch

    budget, name = job["budget"], expert["name"]
    started = time.perf_counter()
    os.environ["nnUNet_n_proc_DA"] = "1"
    write_raw(expert)
    plans = prepare(expert, budget, job["processes"])
    preprocessed = Path(os.environ["nnUNet_preprocessed"]) / name
    dataset_json = json.loads((preprocessed / "dataset.json").read_text())
    prepared = time.perf_counter()

    # with few cores, augmentation in this process costs less than forking and feeding workers
    os.environ["nnUNet_n_proc_DA"] = str(job["processes"])
    seed_all(job["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = trainer_class()({**plans, "continue_training": False}, "2d", 0, dataset_json, device=device)
    trainer.num_epochs = budget["epochs"]
    trainer.num_iterations_per_epoch = budget["iterations_per_epoch"]
    # nnU-Net's proportion, 50 to 250
    trainer.num_val_iterations_per_epoch = max(1, budget["iterations_per_epoch"] // 5)
    trainer.on_iteration = lambda step: emit("progress", expert=name, step=step)
    trainer.on_epoch = lambda step, values: emit("epoch", expert=name, step=step, values=values)
    trainer.initialize()
    check_cases(trainer, expert)
    trainer.run_training()
    check_cases(trainer, expert)

    network = trainer.network
    kept = Path(job["folder"]) / name
    kept.mkdir(exist_ok=True)
    (kept / "dataset.json").write_text(json.dumps(dataset_json))
    (kept / "plans.json").write_text(json.dumps(plans, indent=2))
    shutil.copyfile(preprocessed / "splits_final.json", kept / "splits_final.json")
    # the weights of nnU-Net's checkpoint_final.pth, without its pickled objects
    write_file(kept / "weights.pt", lambda file: torch.save(network.state_dict(), file))
    summary = {
        "key": expert["key"],
        "dataset": expert["dataset"],
        "object": expert["object"],
        "cases": {case["id"]: [case["image_id"], *case["splits"]] for case in expert["cases"]},
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "batch_size": trainer.batch_size,
        "patch_size": trainer.configuration_manager.patch_size,
        "val_dice": float(trainer.logger.get_value("mean_fg_dice", -1)),
        "prepare_seconds": prepared - started,
        "train_seconds": time.perf_counter() - prepared,
    }
    write_json(kept / "expert.json", summary)
    shutil.rmtree(preprocessed)
    shutil.rmtree(Path(os.environ["nnUNet_results"]) / name)
    shutil.rmtree(Path(os.environ["nnUNet_raw"]) / name)
    return summary


def predict(expert: dict, job: dict, emit: Emit) -> None:
    """Applies one expert to its images; each mask becomes a PNG of 0 and 255 at the image's own size."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = Path(job["folder"]) / expert["name"]
    plans = PlansManager(json.loads((folder / "plans.json").read_text()))
    dataset_json = json.loads((folder / "dataset.json").read_text())
    channels = len(dataset_json["channel_names"])
    configuration = plans.get_configuration("2d")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
    heads = plans.get_label_manager(dataset_json).num_segmentation_heads
    trainer = trainer_class()
    network = trainer.build_network_architecture(plans, configuration, channels, heads, enable_deep_supervision=False)
    predictor = nnUNetPredictor(
        tile_step_size=job["tile_step"],
        use_mirroring=False,
        perform_everything_on_device=True,
        device=device,
        allow_tqdm=False,
    )
    predictor.manual_initialization(network, plans, configuration, [weights], dataset_json, trainer.__name__, None)
    for image in expert["images"]:
        pixels = as_channels(read_image(image["image_file"]), channels)
        started = time.perf_counter()  # without the decoding, as for every method
        # NaturalImage2DIO's order: (channels, 1, H, W) float32
        array = (pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))[:, None].astype(np.float32)
        labels = predictor.predict_single_npy_array(array, {"spacing": (999, 1, 1)}, None, None, False)
        seconds = time.perf_counter() - started
        Image.fromarray((labels[0] == 1).astype(np.uint8) * 255).save(image["mask_file"], compress_level=1)
        emit("predicted", index=image["index"], seconds=seconds)


def seed_all(seed: int) -> None:
    """Seeds what nnU-Net draws: weights, cases, patches, augmentation (exact without worker processes)."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def run_job(job: dict, emit: Emit) -> None:
    """All experts of a job, one after the other."""
    import torch

    torch.set_num_threads(max(1, job["threads"]))
    scratch = Path(job["folder"]) / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    for name in ("raw", "preprocessed", "results"):
        (scratch / name).mkdir(parents=True)
    for expert in job["experts"]:
        if job["mode"] == "fit":
            emit("trained", expert=expert["name"], summary=train(expert, job, emit))
        else:
            predict(expert, job, emit)
    shutil.rmtree(scratch)


def end_with_parent() -> None:
    """Ends this process at once when stdin closes: the parent is gone, however it went."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main(job_file: str) -> None:
    """Runs the job of a JSON file; raises what goes wrong, so that it stands in the log."""
    job = json.loads(Path(job_file).read_text())
    # stdout belongs to the events: whatever nnU-Net prints goes to stderr
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=end_with_parent, daemon=True).start()
    set_environment(job)
    run_job(job, lambda event, **values: print(json.dumps({"event": event, **values}), file=events, flush=True))


if __name__ == "__main__":
    main(sys.argv[1])
