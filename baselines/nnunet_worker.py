"""The child process of `baselines.nnunet`: runs the real nnU-Net on the jobs its parent writes.

`python -m baselines.nnunet_worker JOB.json` trains or applies the experts of a job one after the other
(importing nnunetv2 costs seconds, so once for several is better). Events go to stdout as JSON lines; nnU-Net's own
prints go into the nnunet.log of the expert at work. The process ends when its stdin closes, so that it never outlives
the parent.
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
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from baselines.nnunet import LOG, apply_budget
from bench.atomic import read_json, write_json, write_tensors
from bench.cost import peak_memory_mib, restart_peak
from bench.data.dataset import load_image, load_mask
from bench.errors import UserError

Emit = Callable[..., None]

POSTPROCESSING = "postprocessing.json"
# what nnU-Net's default planner writes into a plan of 2D images
NETWORKS = ("dynamic_network_architectures.architectures.unet.PlainConvUNet",)
LAYERS = {"torch.nn.modules.conv.Conv2d", "torch.nn.modules.instancenorm.InstanceNorm2d", "torch.nn.LeakyReLU"}
PROGRESS_INTERVAL = 0.3  # seconds between two progress events: a GPU makes dozens of iterations a second
REPEATS = 5  # timed predictions of one image, after one that warms up


def set_environment(job: dict) -> None:
    """nnU-Net is configured by the environment; part of it is read at import, so this comes first."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(Path(job["scratch"]) / name)
    os.environ["nnUNet_def_n_proc"] = str(max(1, job["threads"]))
    # planning hands this number to torch.set_num_threads, so it may not be 0 there
    os.environ["nnUNet_n_proc_DA"] = "1"
    os.environ["nnUNet_compile"] = "f"  # the same function; its minutes of compilation pay in long trainings only
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


def check_cases(trainer: Any, expert: dict) -> dict[str, list[str]]:
    """The cases that nnU-Net trains and validates on ("train", "val"), as its trainer has them.

    Raises RuntimeError unless they are exactly ours and it has seen no other. (If the asked fold were not in
    splits_final.json, nnU-Net would note it and draw a random split of its own.)
    """

    def check(ours: Any, theirs: Any, what: str) -> None:
        if ours != theirs:
            raise RuntimeError(f"{expert['name']}: {what}: nnU-Net has other cases than the split")

    wanted = {part: [case["id"] for case in expert["cases"] if part in case["splits"]] for part in ("train", "val")}
    used = dict(zip(("train", "val"), map(list, trainer.do_split()), strict=True))
    check(wanted, used, "its split")
    present = set(trainer.dataset_class.get_identifiers(trainer.preprocessed_dataset_folder))
    check(set(wanted["train"]) | set(wanted["val"]), present, "its preprocessed data")
    for part, loader in (("train", trainer.dataloader_train), ("val", trainer.dataloader_val)):
        if loader is not None:  # the loaders as they were used
            loader = getattr(loader, "data_loader", getattr(loader, "generator", None))
            check(set(wanted[part]), set(loader.indices), f"its {part} loader")
    return used


def train(expert: dict, job: dict, emit: Emit) -> None:
    """Trains one expert and keeps weights, plans, dataset.json, split, postprocessing and, last, expert.json."""
    import torch

    budget, name = job["budget"], expert["name"]
    began, started = time.time(), time.perf_counter()
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
    restart_peak(device)
    trainer = trainer_class()({**plans, "continue_training": False}, "2d", 0, dataset_json, device=device)
    trainer.num_epochs = budget["epochs"]
    trainer.num_iterations_per_epoch = budget["iterations_per_epoch"]
    # nnU-Net's proportion, 50 to 250
    trainer.num_val_iterations_per_epoch = max(1, budget["iterations_per_epoch"] // 5)
    curve: list[dict] = []

    def on_epoch(step: int, values: dict[str, float]) -> None:
        curve.append({"step": step, **values})
        emit("epoch", expert=name, **curve[-1])

    trainer.on_iteration = lambda step: emit("progress", expert=name, step=step)
    trainer.on_epoch = on_epoch
    trainer.initialize()
    check_cases(trainer, expert)
    trainer.run_training()
    used = check_cases(trainer, expert)
    memory = peak_memory_mib(device)

    network = trainer.network
    kept = Path(job["folder"]) / name
    (kept / "dataset.json").write_text(json.dumps(dataset_json))
    (kept / "plans.json").write_text(json.dumps(plans, indent=2))
    shutil.copyfile(preprocessed / "splits_final.json", kept / "splits_final.json")
    # the weights of nnU-Net's checkpoint_final.pth, without its pickled objects
    write_tensors(kept / "weights.pt", network.state_dict())
    write_json(kept / POSTPROCESSING, [])
    segmenter = ExpertSegmenter(kept, job["tile_step"])
    if job["postprocess"] and expert["validated"]:
        write_json(kept / POSTPROCESSING, find_postprocessing(expert, segmenter, job["processes"]))
    trained = time.perf_counter()
    image_ids = {case["id"]: case["image_id"] for case in expert["cases"]}
    summary = {
        "key": expert["key"],
        "dataset": expert["dataset"],
        "objects": expert["objects"],
        "cases": {part: [image_ids[case] for case in cases] for part, cases in used.items()},
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "batch_size": trainer.batch_size,
        "patch_size": trainer.configuration_manager.patch_size,
        "val_dice": float(trainer.logger.get_value("mean_fg_dice", -1)),
        "prepare_seconds": prepared - started,
        "train_seconds": trained - prepared,
        "cost": inference_cost(segmenter, read_image(expert["cases"][0]["image_file"])) | memory,
        "curve": curve,
        "began": began,
        "ended": time.time(),
    }
    write_json(kept / "expert.json", summary)
    shutil.rmtree(preprocessed)
    shutil.rmtree(Path(os.environ["nnUNet_results"]) / name)
    shutil.rmtree(Path(os.environ["nnUNet_raw"]) / name)


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


def predict(expert: dict, job: dict, emit: Emit) -> None:
    """Applies one expert to its images; each becomes a PNG of labels at the image's own size."""
    segmenter = ExpertSegmenter(Path(job["folder"]) / expert["name"], job["tile_step"])
    for entry in expert["images"]:
        image = read_image(entry["image_file"])
        started = time.perf_counter()  # without the decoding, as for every method
        labels = segmenter(image)
        seconds = time.perf_counter() - started
        Image.fromarray(labels).save(entry["label_file"], compress_level=1)
        emit("predicted", expert=expert["name"], label_file=entry["label_file"], seconds=seconds)


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
    for name in ("raw", "preprocessed", "results"):
        (Path(job["scratch"]) / name).mkdir()
    for expert in job["experts"]:
        print_to(Path(job["folder"]) / expert["name"] / LOG)
        emit("begun", expert=expert["name"])
        {"fit": train, "predict": predict}[job["mode"]](expert, job, emit)
    emit("done")


def print_to(log: Path) -> None:
    """From now on whatever is printed, here or in a library, is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as handle:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(handle.fileno(), stream.fileno())


def throttled(emit: Emit) -> Emit:
    """`emit`, which leaves out progress that comes too soon after the last."""
    last = 0.0

    def emit_some(event: str, **values: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if event == "progress":
            if now - last < PROGRESS_INTERVAL:
                return
            last = now
        emit(event, **values)

    return emit_some


def end_with_parent() -> None:
    """Ends this process at once when stdin closes: the parent is gone, however it went."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main(job_file: str) -> None:
    """Runs the job of a JSON file; raises what goes wrong, so that it stands in the log."""
    job = json.loads(Path(job_file).read_text())
    # stdout belongs to the events: whatever nnU-Net prints goes into a log
    events = os.fdopen(os.dup(1), "w")
    print_to(Path(job["folder"]) / job["experts"][0]["name"] / LOG)
    threading.Thread(target=end_with_parent, daemon=True).start()
    set_environment(job)
    emit = lambda event, **values: print(json.dumps({"event": event, **values}), file=events, flush=True)  # noqa: E731
    run_job(job, throttled(emit))


if __name__ == "__main__":
    main(sys.argv[1])
