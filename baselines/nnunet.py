"""nnU-Net (Isensee et al., Nature Methods 18, 2021) as the expert baseline: a model per (data set, object).

Section 4 of the paper trains nnU-Net's experts "in fully supervised setting performing binary segmentation
for each object type in each dataset, without text prompting". Here the real nnunetv2 fingerprints, plans,
preprocesses, trains, chooses its postprocessing and predicts, in child processes (`baselines.nnunet_worker`), on
exactly the cases of our split that have the target. The profile's `NnunetBudget` may cut its plan; loss, deep
supervision, augmentation (nnUNetTrainerNoMirroring's, since a mirrored left kidney is a right one), foreground
oversampling, SGD with PolyLR are nnU-Net's own. The final checkpoint is used, nnU-Net's default.

`baselines.nnunet_multiclass` is the same with one model per data set.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from PIL import Image

from baselines.nnunet_experts import LOG, is_full, plan_experts, read_expert, read_summary
from bench.errors import UserError
from bench.interface import FitSummary, Log, Prediction, Sample, Spread
from bench.spec import NnunetBudget, RunSpec

MANY = 15  # prompts, as in `bench.cost`

HOME_GROUND = "nnU-Net's maintainers caution that 2D PNG slices are not its home ground: it is made for 3D volumes"
FINAL_CHECKPOINT = "final checkpoint, as is its default; val Dice is its pseudo-Dice on validation patches"
NO_MIRRORING = "its trainer without mirroring, as objects differ by side"
PLANNER = "planned by its default planner, not by the residual encoder presets that its maintainers now recommend"
UNANNOTATED = "an object that is not annotated in an image counts as background there"
CUT = "plan cut to the profile's budget, tile step 0.75 instead of 0.5, no postprocessing; no ensemble of folds"
ONE_FOLD = "postprocessing chosen by its own rule, on one fold instead of five; no ensemble of folds"


def build(spec: RunSpec) -> Nnunet:
    """The method of a run. Raises ValueError if the spec has no nnU-Net budget."""
    return Nnunet(budget_of(spec), spec.seed)


def budget_of(spec: RunSpec) -> NnunetBudget:
    """The spec's budget. Raises ValueError if it has none."""
    if spec.nnunet is None:
        raise ValueError(f"method {spec.method!r} needs a budget: RunSpec.nnunet is None")
    return spec.nnunet


def in_turn(work: Callable[[list[dict]], Iterator[dict]], items: list[dict]) -> Iterator[dict]:
    """The `Spread` of this process: everything in one share."""
    return work(items)


class Nnunet:
    """A `Method` around nnU-Net's experts. It can predict after `fit` or `load`.

    `multiclass`: one model for all objects of a data set instead of an expert for each; `spread` may be replaced, to
    train and apply experts side by side.
    """

    def __init__(self, budget: NnunetBudget, seed: int = 0, multiclass: bool = False) -> None:
        self.budget = budget
        self.seed = seed
        self.multiclass = multiclass
        self.spread: Spread = in_turn
        self.run_dir: Path | None = None

    def load(self, run_dir: Path) -> None:
        """Takes the experts that an earlier `fit` left in `run_dir`."""
        self.run_dir = run_dir.resolve()

    def fit(self, train: Sequence[Sample], val: Sequence[Sample], run_dir: Path, log: Log) -> FitSummary:
        """Trains an expert for each (data set, object) of `train`; experts already in `run_dir` are kept.

        Leaves run_dir/nnunet/<expert>/{weights.pt, plans.json, dataset.json, splits_final.json, postprocessing.json,
        expert.json, nnunet.log}. Raises RuntimeError with expert and log if a child process fails, UserError for an
        unreadable image or mask.
        """
        self.load(run_dir)
        experts = plan_experts(train, val, self.budget, self.seed, self.multiclass)
        missing = [expert for expert in experts if read_summary(self._folder / expert["name"], expert["key"]) is None]
        if missing:
            self._train(missing, experts, log)
        summaries = [read_summary(self._folder / expert["name"], expert["key"]) for expert in experts]
        return summarise([summary for summary in summaries if summary], experts, self.budget, self.multiclass)

    def predict(self, samples: Iterable[Sample], log: Log) -> Iterator[Prediction]:
        """Predictions in the order of `samples` at original resolution; `seconds`: preprocessing to resampling.

        All experts run before the first prediction is yielded. A model of several objects shares its seconds equally
        among an image's targets. An object that no expert was trained for gets an empty mask. Raises UserError if
        there are no experts, and if an image has changed size.
        """
        if self.run_dir is None or not self._folder.is_dir():
            raise UserError(f"no nnU-Net experts in {self.run_dir}: train them first, fit(train, val, run_dir, log)")
        known = {}
        for file in sorted(self._folder.glob("*/expert.json")):
            summary = read_expert(file)
            for label, name in enumerate(summary["objects"], start=1):
                known[summary["dataset"], name] = file.parent.name, label
        rows = []  # sample, target, file of labels (None: no expert), label
        jobs: dict[str, dict[str, str]] = {}  # expert -> file of labels -> image
        self._remove_leftovers("labels-*")
        # an error comes while children still write there
        with tempfile.TemporaryDirectory(prefix="labels-", dir=self._folder, ignore_cleanup_errors=True) as folder:
            for number, sample in enumerate(samples):
                for target in sample.targets:
                    expert, label = known.get((sample.dataset, target.object), (None, 0))
                    file = None
                    if expert is not None:
                        file = f"{folder}/{expert}-{number}.png"
                        jobs.setdefault(expert, {})[file] = str(sample.image_file.resolve())
                    rows.append((sample, target, file, label))
            sharing = Counter(file for _, _, file, _ in rows)
            seconds = self._apply(jobs, log)
            for sample, target, file, label in rows:
                shape = (sample.height, sample.width)
                mask = np.zeros(shape, bool) if file is None else np.asarray(Image.open(file)) == label
                if mask.shape != shape:
                    raise UserError(
                        f"{sample.image_file} is {mask.shape}, not {shape} px as its JSON says: mend either"
                    )
                yield Prediction(sample, target, mask, 0.0 if file is None else seconds[file] / sharing[file])

    @property
    def _folder(self) -> Path:
        assert self.run_dir is not None
        return self.run_dir / "nnunet"

    def _remove_leftovers(self, pattern: str) -> None:
        """Removes what a run that was killed has left."""
        for folder in self._folder.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)

    def _train(self, missing: list[dict], experts: list[dict], log: Log) -> None:
        names = [expert["name"] for expert in experts]
        iterations = self.budget.epochs * self.budget.iterations_per_epoch
        waiting = {expert["name"] for expert in missing}
        done = {name: 0 if name in waiting else iterations for name in names}

        def log_point(name: str, point: dict) -> None:
            log.metrics(
                names.index(name) * iterations + point["step"],
                train_loss=point["train_losses"],
                val_loss=point["val_losses"],
                val_dice=point["mean_fg_dice"],
                learning_rate=point["lrs"],
            )

        # first the curves of the experts that are kept: a log that goes on forgets what comes after its first point
        for expert in experts:
            if expert["name"] not in waiting:
                for point in read_summary(self._folder / expert["name"], expert["key"])["curve"]:
                    log_point(expert["name"], point)
        log.progress("waiting", sum(done.values()), iterations * len(experts))  # for a core, beside other trials
        begun, phase = len(experts) - len(missing), ""
        for event in self._run("fit", missing):
            name = event["expert"]
            if event["event"] == "begun":
                begun += 1
                phase = f"expert {begun}/{len(experts)} {experts[names.index(name)]['title']}"
                continue
            done[name] = event["step"]
            log.progress(phase, sum(done.values()), iterations * len(experts))
            if event["event"] == "epoch":
                log_point(name, event)

    def _apply(self, jobs: dict[str, dict[str, str]], log: Log) -> dict[str, float]:
        """Runs the experts on their images; file of labels -> seconds."""
        experts = [
            {"name": name, "images": [{"image_file": image, "label_file": file} for file, image in images.items()]}
            for name, images in jobs.items()
        ]
        total = sum(len(images) for images in jobs.values())
        seconds: dict[str, float] = {}
        for event in self._run("predict", experts):
            if event["event"] == "predicted":
                seconds[event["label_file"]] = event["seconds"]
                log.progress("predict", len(seconds), total)
        return seconds

    def _run(self, mode: str, experts: list[dict]) -> Iterator[dict]:
        """The events of child processes that fit or apply `experts`."""
        if not experts:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers("scratch-*")
        job = {
            "mode": mode,
            "folder": str(self._folder),
            "budget": self.budget.model_dump(),
            "seed": self.seed,
            # with many small patches an image, 0.75 halves the time and gives the same Dice
            "tile_step": 0.5 if is_full(self.budget) else 0.75,
            # nnU-Net's rule asks five folds of a fully trained network; of a little trained one it says nothing
            "postprocess": is_full(self.budget),
        }
        yield from self.spread(functools.partial(run_child, job), experts)


def run_child(job: dict, experts: list[dict]) -> Iterator[dict]:
    """Runs one child process on a share of the experts, one after the other, and yields its events.

    Raises UserError for what the child calls one, RuntimeError with the expert at work and the last lines of its log
    for anything else.
    """
    folder = Path(job["folder"])
    threads = thread_count()
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    current = experts[0]["name"]
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=folder, ignore_cleanup_errors=True) as scratch:
        job_file = Path(scratch) / "job.json"
        # worker processes pay from a handful of cores on
        parts = {"scratch": scratch, "experts": experts, "threads": threads, "processes": 0 if threads < 4 else threads}
        job_file.write_text(json.dumps(job | parts))
        log_file = folder / current / LOG
        log_file.parent.mkdir(exist_ok=True)
        with log_file.open("ab") as output:
            # stdin stays open while we live: the child ends when it closes. In a session of its own it does not hear a
            # terminal's Ctrl-C, which is ours to handle
            child = subprocess.Popen(
                [sys.executable, "-m", "baselines.nnunet_worker", str(job_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                text=True,
                start_new_session=True,
            )
        finished = False
        try:
            for line in child.stdout or ():
                event = json.loads(line)
                if event["event"] == "done":
                    finished = True
                    break
                current = event["expert"]
                yield event
        finally:
            # with the processes that nnU-Net has started: as long as one lives, whoever reads its output waits
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    # told by its last event: Ray ignores SIGCHLD in its workers, and there every exit code reads 0
    if not finished:
        log_file = folder / current / LOG
        lines = log_file.read_text(errors="replace").strip().splitlines()[-3:]
        error, _, message = lines[-1].partition(": ") if lines else ("", "", "")
        if error.endswith("errors.UserError"):
            raise UserError(message)
        raise RuntimeError(f"nnU-Net's {current} failed; see {log_file}: {' | '.join(lines)}")


def summarise(summaries: list[dict], experts: list[dict], budget: NnunetBudget, multiclass: bool = False) -> FitSummary:
    """What all experts cost together; val Dice is the mean over those with validation cases of their own.

    `train_seconds` are summed over experts, those that ran side by side included. GFLOP and milliseconds of a prompt
    are those of one image's labels, all tiles, mean over experts: 15 prompts are 15 experts, or one multi-class model.
    """
    iterations = budget.epochs * budget.iterations_per_epoch
    parameters = sum(summary["parameters"] for summary in summaries)
    images_seen = sum(iterations * summary["batch_size"] for summary in summaries)
    batches = "/".join(map(str, sorted({summary["batch_size"] for summary in summaries})))
    patches = ", ".join(sorted({"x".join(map(str, summary["patch_size"])) for summary in summaries}))
    dices = [row["val_dice"] for row, expert in zip(summaries, experts, strict=True) if expert["validated"]]
    notes = [HOME_GROUND, FINAL_CHECKPOINT, NO_MIRRORING, PLANNER]
    if multiclass:
        notes.append(UNANNOTATED)
    if not is_full(budget):
        notes.append(CUT)
    else:
        notes.append(ONE_FOLD)
    milliseconds = mean(summary["cost"]["milliseconds"] for summary in summaries)
    cost = {
        "gflop_per_prompt": mean(summary["cost"]["gflop"] for summary in summaries),
        "ms_1_prompt": milliseconds,
        "ms_15_prompts": milliseconds / MANY if multiclass else milliseconds,
    }
    memory = [summary["cost"]["peak_memory_mib"] for summary in summaries if "peak_memory_mib" in summary["cost"]]
    return FitSummary(
        budget=f"{len(summaries)} {'multi-class models' if multiclass else 'experts'} x {iterations} iterations "
        f"x {batches} patches of {patches} px, {parameters / len(summaries) / 1e6:.2g} M parameters each",
        train_seconds=sum(row["prepare_seconds"] + row["train_seconds"] for row in summaries),
        parameters=parameters,
        images_seen=images_seen,
        best_val_dice=float(mean(dices)) if dices else None,
        cost=cost | ({"peak_memory_mib": max(memory)} if memory else {}),
        given={
            "image_size": f"original, in patches of {patches}",
            "images_seen": str(images_seen),
            "augmentation": "nnU-Net's own without mirroring",
            "loss": "nnU-Net's Dice and cross-entropy, deep supervision",
            "selection": "final checkpoint",
            "tuning": "none; planned by nnU-Net's rules" + ("" if is_full(budget) else ", cut to the budget"),
        },
        notes=notes,
    )


def thread_count() -> int:
    """Threads the parent was given: OMP_NUM_THREADS, else torch's number if torch is in use, else 1."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else 1
