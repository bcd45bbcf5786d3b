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
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from baselines.nnunet_data import prepare, read_image, write_raw
from baselines.nnunet_experts import LOG
from baselines.nnunet_segmenter import POSTPROCESSING, ExpertSegmenter, find_postprocessing, inference_cost
from baselines.nnunet_trainer import check_cases, trainer_class
from bench.atomic import write_json, write_tensors
from bench.cost import peak_memory_mib, restart_peak

Emit = Callable[..., None]

PROGRESS_INTERVAL = 0.3  # seconds between two progress events: a GPU makes dozens of iterations a second


def set_environment(job: dict) -> None:
    """nnU-Net is configured by the environment; part of it is read at import, so this comes first."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(Path(job["scratch"]) / name)
    os.environ["nnUNet_def_n_proc"] = str(max(1, job["threads"]))
    # planning hands this number to torch.set_num_threads, so it may not be 0 there
    os.environ["nnUNet_n_proc_DA"] = "1"
    os.environ["nnUNet_compile"] = "f"  # the same function; its minutes of compilation pay in long trainings only
    os.environ["nnUNet_wandb_enabled"] = "0"


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

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # only a GPU is too fast for augmentation in this process, whose draws alone can be repeated
    os.environ["nnUNet_n_proc_DA"] = str(job["processes"] if device.type == "cuda" else 0)
    seed_all(job["seed"])
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
    """Ends this process and those it has started, at once, when stdin closes: the parent is gone, however it went."""
    while os.read(0, 1):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main(job_file: str) -> None:
    """Runs the job of a JSON file; raises what goes wrong, so that it stands in the log."""
    job = json.loads(Path(job_file).read_text())
    # stdout belongs to the events: whatever nnU-Net prints goes into a log
    events = os.fdopen(os.dup(1), "w")
    os.register_at_fork(after_in_child=events.close)  # what nnU-Net forks must not keep it open when this process ends
    print_to(Path(job["folder"]) / job["experts"][0]["name"] / LOG)
    threading.Thread(target=end_with_parent, daemon=True).start()
    set_environment(job)
    emit = lambda event, **values: print(json.dumps({"event": event, **values}), file=events, flush=True)  # noqa: E731
    run_job(job, throttled(emit))


if __name__ == "__main__":
    main(sys.argv[1])
