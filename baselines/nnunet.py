"""nnU-Net (Isensee et al., Nature Methods 18, 2021) as the expert baseline: a model per (data set, object).

Section 4 of the paper trains nnU-Net's experts "in fully supervised setting performing binary segmentation
for each object type in each dataset, without text prompting". Here the real nnunetv2 fingerprints, plans,
preprocesses, trains and predicts, in one child process a run (`baselines.nnunet_worker`), on exactly the
cases of our split that have the target. The profile's `NnunetBudget` may cut its plan; loss, deep
supervision, augmentation (nnUNetTrainerNoMirroring's, since a mirrored left kidney is a right one), foreground
oversampling, SGD with PolyLR are nnU-Net's own. The final checkpoint is
used, nnU-Net's default; nothing is selected on validation.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from PIL import Image

from bench.errors import UserError
from bench.interface import FitSummary, Log, Prediction, Sample
from bench.spec import NnunetBudget, RunSpec

HOME_GROUND = "nnU-Net's maintainers caution that 2D PNG slices are not its home ground: it is made for 3D volumes"
SMALLEST_EDGE = 4  # px at the deepest stage: nnU-Net's UNet_featuremap_min_edge_length
FINAL_CHECKPOINT = "final checkpoint, as is its default; val Dice is its pseudo-Dice on validation patches"
NO_MIRRORING = "its trainer without mirroring, as objects differ by side"


def build(spec: RunSpec) -> Nnunet:
    """The method of a run. Raises ValueError if the spec has no nnU-Net budget."""
    if spec.nnunet is None:
        raise ValueError("method 'nnunet' needs a budget: RunSpec.nnunet is None")
    return Nnunet(spec.nnunet, spec.seed)


class Nnunet:
    """A `Method` around nnU-Net's experts. It can predict after `fit` or `load`."""

    def __init__(self, budget: NnunetBudget, seed: int = 0) -> None:
        self.budget = budget
        self.seed = seed
        self.run_dir: Path | None = None

    def load(self, run_dir: Path) -> None:
        """Takes the experts that an earlier `fit` left in `run_dir`."""
        self.run_dir = run_dir.resolve()

    def fit(self, train: Sequence[Sample], val: Sequence[Sample], run_dir: Path, log: Log) -> FitSummary:
        """Trains an expert for each (data set, object) of `train`; experts already in `run_dir` are kept.

        Leaves run_dir/nnunet/<expert>/{weights.pt, plans.json, dataset.json, splits_final.json, expert.json}
        and run_dir/nnunet.log. Raises RuntimeError with the log's last lines if the child process fails,
        UserError for an unreadable image or mask.
        """
        self.load(run_dir)
        experts = plan_experts(train, val, self.budget, self.seed)
        missing = [expert for expert in experts if read_summary(self._folder / expert["name"], expert["key"]) is None]
        if missing:
            self._train(missing, experts, log)
        summaries = [read_summary(self._folder / expert["name"], expert["key"]) for expert in experts]
        return summarise([summary for summary in summaries if summary], experts, self.budget)

    def predict(self, samples: Iterable[Sample], log: Log) -> Iterator[Prediction]:
        """Predictions in the order of `samples` at original resolution; `seconds`: reading to resampling.

        The experts run one after the other before the first prediction is yielded. An object that no expert
        was trained for gets an empty mask. Raises UserError if there are no experts, and if an image has
        changed size.
        """
        if self.run_dir is None or not self._folder.is_dir():
            raise UserError(f"no nnU-Net experts in {self.run_dir}: train them first, fit(train, val, run_dir, log)")
        names = {}
        for file in sorted(self._folder.glob("*/expert.json")):
            summary = json.loads(file.read_text())
            names[summary["dataset"], summary["object"]] = file.parent.name
        rows = [(sample, target) for sample in samples for target in sample.targets]
        with tempfile.TemporaryDirectory(prefix="masks-", dir=self._folder) as masks:
            jobs: dict[str, list[dict]] = {}
            for index, (sample, target) in enumerate(rows):
                name = names.get((sample.dataset, target.object))
                if name is not None:
                    image = {"index": index, "image_file": str(sample.image_file.resolve())}
                    jobs.setdefault(name, []).append({**image, "mask_file": str(Path(masks) / f"{index}.png")})
            seconds = self._apply(jobs, log)
            for index, (sample, target) in enumerate(rows):
                shape = (sample.height, sample.width)
                mask = np.zeros(shape, bool)
                if index in seconds:
                    mask = np.asarray(Image.open(Path(masks) / f"{index}.png")) > 0
                if mask.shape != shape:
                    raise UserError(
                        f"{sample.image_file} is {mask.shape}, not {shape} px as its JSON says: mend either"
                    )
                yield Prediction(sample, target, mask, seconds.get(index, 0.0))

    @property
    def _folder(self) -> Path:
        assert self.run_dir is not None
        return self.run_dir / "nnunet"

    def _train(self, missing: list[dict], experts: list[dict], log: Log) -> None:
        names = [expert["name"] for expert in experts]
        iterations = self.budget.epochs * self.budget.iterations_per_epoch
        total = iterations * len(experts)
        for event in self._run({"mode": "fit", "experts": missing}):
            if event["event"] == "trained":
                continue
            number = names.index(event["expert"])
            step = number * iterations + event["step"]
            if event["event"] == "progress":
                phase = f"expert {number + 1}/{len(experts)} {experts[number]['object']}"
                log.progress(phase, step, total)
            else:
                values = event["values"]
                log.metrics(
                    step,
                    train_loss=values["train_losses"],
                    val_loss=values["val_losses"],
                    val_dice=values["mean_fg_dice"],
                    learning_rate=values["lrs"],
                )

    def _apply(self, jobs: dict[str, list[dict]], log: Log) -> dict[int, float]:
        """Runs the experts on their images; row number -> seconds."""
        seconds: dict[int, float] = {}
        total = sum(len(images) for images in jobs.values())
        experts = [{"name": name, "images": images} for name, images in jobs.items()]
        for event in self._run({"mode": "predict", "experts": experts}) if experts else ():
            seconds[event["index"]] = event["seconds"]
            log.progress("predict", len(seconds), total)
        return seconds

    def _run(self, job: dict) -> Iterator[dict]:
        """Runs the child process on `job` and yields its events; raises RuntimeError with its last lines."""
        assert self.run_dir is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        threads = thread_count()
        job = {
            **job,
            "folder": str(self._folder),
            "budget": self.budget.model_dump(),
            "seed": self.seed,
            "threads": threads,
            # worker processes pay from a handful of cores on
            "processes": 0 if threads < 4 else threads,
            # with many small patches an image, 0.75 halves the time and gives the same Dice
            "tile_step": 0.5 if is_full(self.budget) else 0.75,
        }
        job_file = self._folder / f"{job['mode']}.json"
        job_file.write_text(json.dumps(job))
        log_file = self.run_dir / "nnunet.log"
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "baselines.nnunet_worker", str(job_file)]
        with log_file.open("ab") as output:
            # stdin stays open while we live: the child ends when it closes
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                text=True,
            )
            try:
                for line in child.stdout or ():
                    yield json.loads(line)
                code = child.wait()
            finally:
                child.kill()
                child.communicate()
                shutil.rmtree(self._folder / "scratch", ignore_errors=True)
        job_file.unlink()
        if code != 0:
            lines = log_file.read_text(errors="replace").strip().splitlines()[-3:]
            error, _, message = lines[-1].partition(": ") if lines else ("", "", "")
            if error.endswith("errors.UserError"):
                raise UserError(message)
            raise RuntimeError(f"nnU-Net ended with code {code}; see {log_file}: {' | '.join(lines)}")


def plan_experts(train: Sequence[Sample], val: Sequence[Sample], budget: NnunetBudget, seed: int) -> list[dict]:
    """The worker's description of each expert: one per (data set, object) of `train`, with its cases.

    An object without a validation mask is validated on its training cases (nnU-Net needs some); as its final
    checkpoint is used, this selects nothing. `key` is a hash of all that the expert depends on.
    """
    experts: dict[tuple[str, str], dict] = {}
    numbers: dict[tuple[str, str], str] = {}
    images: dict[str, list[str]] = {}
    for part, samples in (("train", train), ("val", val)):
        for sample in samples:
            case = numbers.setdefault((sample.dataset, sample.image_id), f"case_{len(numbers):05d}")
            image_file = str(sample.image_file.resolve())
            images.setdefault(sample.dataset, []).append(image_file)
            for target in sample.targets:
                key = (sample.dataset, target.object)
                if part == "val" and key not in experts:
                    continue
                expert = experts.setdefault(key, {"dataset": key[0], "object": key[1], "cases": []})
                expert["cases"].append(
                    {
                        "id": case,
                        "image_id": sample.image_id,
                        "image_file": image_file,
                        "mask_file": str(target.mask_file.resolve()),
                        "splits": [part],
                    }
                )
    datasets = list(images)
    for number, expert in enumerate(experts.values(), start=1):
        expert["validated"] = any("val" in case["splits"] for case in expert["cases"])
        if not expert["validated"]:
            for case in expert["cases"]:
                case["splits"].append("val")
        expert["name"] = f"Dataset{number:03d}_" + re.sub(r"\W+", "-", f"{expert['dataset']}-{expert['object']}")
        expert["images"] = f"images{datasets.index(expert['dataset']):03d}"
        cases = [[case["image_id"], case["splits"]] for case in expert["cases"]]
        text = json.dumps([expert["dataset"], expert["object"], cases, budget.model_dump(), seed])
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


def read_summary(folder: Path, key: str) -> dict | None:
    """expert.json of a finished expert; None if unfinished or trained on other cases or another budget."""
    file = folder / "expert.json"
    if not file.exists() or not (folder / "weights.pt").exists():
        return None
    summary = json.loads(file.read_text())
    return summary if summary["key"] == key else None


def summarise(summaries: list[dict], experts: list[dict], budget: NnunetBudget) -> FitSummary:
    """What all experts cost together; val Dice is the mean over those with validation cases of their own."""
    iterations = budget.epochs * budget.iterations_per_epoch
    parameters = sum(summary["parameters"] for summary in summaries)
    batches = sorted({summary["batch_size"] for summary in summaries})
    patches = sorted({"x".join(map(str, summary["patch_size"])) for summary in summaries})
    dices = [row["val_dice"] for row, expert in zip(summaries, experts, strict=True) if expert["validated"]]
    notes = [HOME_GROUND, FINAL_CHECKPOINT, NO_MIRRORING]
    if not is_full(budget):
        notes.append("plan cut to the profile's budget, tile step 0.75 instead of 0.5")
    return FitSummary(
        budget=f"{len(summaries)} experts x {iterations} iterations x {'/'.join(map(str, batches))} patches "
        f"of {', '.join(patches)} px, {parameters / len(summaries) / 1e6:.2g} M parameters each",
        train_seconds=sum(row["prepare_seconds"] + row["train_seconds"] for row in summaries),
        parameters=parameters,
        images_seen=sum(iterations * summary["batch_size"] for summary in summaries),
        best_val_dice=float(mean(dices)) if dices else None,
        notes=notes,
    )


def is_full(budget: NnunetBudget) -> bool:
    """Whether the budget leaves nnU-Net's own plan as it is; then its way of predicting stays, too."""
    return budget.batch_size is None and budget.patch_size is None and budget.features is None


def thread_count() -> int:
    """Threads the parent was given: OMP_NUM_THREADS, else torch's number if torch is in use, else 1."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else 1
