"""The real nnU-Net on a handful of tiny images: its cases, its masks, its resume."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from baselines.nnunet import Nnunet, build, thread_count
from baselines.nnunet_experts import plan_experts, read_summary
from bench.errors import UserError
from bench.fairness import COSTS, GIVEN
from bench.interface import Sample, Target
from bench.spec import NnunetBudget, RunSpec

ROOT = Path(__file__).resolve().parents[2]
BUDGET = NnunetBudget(epochs=3, iterations_per_epoch=30, batch_size=4, patch_size=32, features=(8, 16, 16))


class Recorder:
    def __init__(self):
        self.phases, self.curves = [], []

    def progress(self, phase, step, total):
        assert 0 <= step <= total and (step or phase == "waiting")
        self.phases.append(phase)

    def metrics(self, step, **values):
        self.curves.append((step, values))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def truth(target: Target) -> np.ndarray:
    return np.asarray(Image.open(target.mask_file)) > 0


def make_sample(folder: Path, number: int, names: tuple[str, ...], colour: bool, dataset: str) -> Sample:
    """A noisy image, not square, with a bright square ("square") and its brighter upper half ("half")."""
    rng = np.random.default_rng(number)
    height, width = [(48, 40), (40, 64), (56, 48)][number % 3]
    top, left = rng.integers(4, height - 20), rng.integers(4, width - 20)
    masks = {name: np.zeros((height, width), np.uint8) for name in ("square", "half")}
    masks["square"][top : top + 16, left : left + 16] = 255
    masks["half"][top : top + 8, left : left + 16] = 255
    image = rng.integers(20, 60, (height, width)) + masks["square"] // 2 + masks["half"] // 4
    pixels = np.stack([image, image // 2, image], axis=2) if colour else image
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"image {number}.png"  # names with a blank, as real files have them
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    targets = []
    for name in names:
        mask_file = folder / f"image {number}_{name}.png"
        Image.fromarray(masks[name]).save(mask_file)
        targets.append(Target(name, (name,), mask_file))
    return Sample(dataset, f"image {number}", f"p{number}", file, height, width, tuple(targets))


def make_samples(folder: Path) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """train, val, test: "square" everywhere, "half" in some; and a coloured data set of three images."""
    both, one = ("square", "half"), ("square",)
    grey = [make_sample(folder / "grey", n, both if n % 2 else one, False, "grey") for n in range(10)]
    colour = [make_sample(folder / "colour", n, one, True, "colour") for n in range(20, 25)]
    return [*grey[:6], *colour[:3]], [*grey[6:8], colour[3]], [*grey[8:], colour[4]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nnunet")
    run_dir = folder / "run"
    run_dir.mkdir()
    train, val, test = make_samples(folder / "data")
    log = Recorder()
    summary = Nnunet(BUDGET, seed=3).fit(train, val, run_dir, log)
    return run_dir, train, val, test, log, summary


def experts_of(run_dir: Path) -> dict[tuple[str, str], Path]:
    folders = [file.parent for file in (run_dir / "nnunet").glob("*/expert.json")]
    rows = {folder: json.loads((folder / "expert.json").read_text()) for folder in folders}
    return {(row["dataset"], *row["objects"]): folder for folder, row in rows.items()}


def test_one_expert_per_object_on_exactly_its_cases(trained):
    run_dir, train, val, test, _, _ = trained
    experts = experts_of(run_dir)
    assert set(experts) == {("grey", "square"), ("grey", "half"), ("colour", "square")}
    for (dataset, name), folder in experts.items():
        (split,) = json.loads((folder / "splits_final.json").read_text())
        used = json.loads((folder / "expert.json").read_text())["cases"]
        for part, samples in (("train", train), ("val", val)):
            wanted = [s.image_id for s in samples if s.dataset == dataset and name in [t.object for t in s.targets]]
            assert used[part] == wanted
            assert len(split[part]) == len(wanted)
        assert not {s.image_id for s in test if s.dataset == dataset} & {*used["train"], *used["val"]}
        # nnU-Net's own description of its data knows no other case
        known = json.loads((folder / "dataset.json").read_text())["dataset"]
        assert set(known) == {*split["train"], *split["val"]}


def test_grey_has_one_channel_and_colour_three(trained):
    for (dataset, _), folder in experts_of(trained[0]).items():
        channels = json.loads((folder / "dataset.json").read_text())["channel_names"]
        assert len(channels) == (1 if dataset == "grey" else 3)


def test_summary_and_log_tell_what_was_spent(trained):
    *_, log, summary = trained
    assert summary.images_seen == 3 * 90 * 4
    assert summary.budget.startswith("3 experts x 90 iterations x 4 patches of 32x32 px")
    assert summary.parameters > 3 * 1000 and summary.train_seconds > 0
    assert 0 <= summary.best_val_dice <= 1
    assert any("final checkpoint" in note for note in summary.notes)
    assert any("no postprocessing" in note for note in summary.notes)
    assert [step for step, _ in log.curves] == list(range(30, 271, 30))
    assert {"train_loss", "val_loss", "val_dice", "learning_rate"} == set(log.curves[0][1])
    assert log.curves[0][1]["learning_rate"] == pytest.approx(0.01)
    # PolyLR: (1 - epoch / epochs) ** 0.9
    assert log.curves[2][1]["learning_rate"] == pytest.approx(0.01 * (1 / 3) ** 0.9)
    assert log.phases[0] == "waiting"
    assert {phase.split()[1] for phase in log.phases[1:]} == {"1/3", "2/3", "3/3"}


def test_summary_tells_what_was_given_and_what_it_costs(trained):
    run_dir, train, *_, summary = trained
    assert set(summary.given) < set(GIVEN) and set(summary.cost) == set(COSTS)
    assert summary.given["images_seen"] == str(3 * 90 * 4)
    assert summary.given["image_size"] == "original, in patches of 32x32"
    assert summary.cost["ms_1_prompt"] == summary.cost["ms_15_prompts"] > 0
    assert summary.cost["peak_memory_mib"] > 10
    # by hand: the convolutions of one 32 x 32 patch of each network, times the tiles at three quarters of a patch
    by_hand = []
    for (dataset, name), folder in experts_of(run_dir).items():
        case = next(s for s in train if s.dataset == dataset and name in [t.object for t in s.targets])
        tiles = ceil((case.height - 32) / 24 + 1) * ceil((case.width - 32) / 24 + 1)
        by_hand.append(tiles * patch_gflop(torch.load(folder / "weights.pt"), 32))
    assert summary.cost["gflop_per_prompt"] == pytest.approx(np.mean(by_hand), rel=1e-6)


def patch_gflop(weights: dict[str, torch.Tensor], size: int) -> float:
    """2 x multiplications of the network of BUDGET on one patch, from the shapes of its kernels."""
    flop = 0
    for key, kernel in weights.items():
        part, _, rest = key.partition(".")
        seen_twice = ".all_modules." in key or key.startswith("decoder.encoder.")
        if kernel.ndim != 4 or seen_twice:
            continue
        numbers = [int(word) for word in rest.split(".") if word.isdigit()]
        # the decoder's stages and transposed convolutions are numbered from the coarsest up
        side = size >> (numbers[0] if part == "encoder" else len(BUDGET.features) - 2 - numbers[0])
        if rest.startswith("transpconvs"):
            side //= 2  # each pixel of its input makes a block of the output
        if rest.startswith("seg_layers") and side < size:
            continue  # deep supervision, off in prediction
        flop += 2 * kernel.numel() * side**2
    return flop / 1e9


def test_only_what_prediction_needs_is_left(trained):
    run_dir = trained[0]
    kept = {"weights.pt", "plans.json", "dataset.json", "splits_final.json", "postprocessing.json", "expert.json"}
    assert [p.name for p in run_dir.iterdir()] == ["nnunet"]
    for folder in (run_dir / "nnunet").iterdir():
        assert {p.name for p in folder.iterdir()} == kept | {"nnunet.log"}
        assert "Epoch 2" in (folder / "nnunet.log").read_text()


def test_predicts_in_a_new_object_at_original_size(trained):
    run_dir, train, _, test, _, _ = trained
    unknown = replace(test[0], targets=(replace(test[0].targets[0], object="never trained"),))
    method = Nnunet(BUDGET)
    method.load(run_dir)
    samples = [*test, *train, unknown]
    predictions = list(method.predict(samples, Recorder()))
    assert [(p.sample, p.target) for p in predictions] == [(s, t) for s in samples for t in s.targets]
    for prediction in predictions:
        assert prediction.mask.shape == (prediction.sample.height, prediction.sample.width)
        assert prediction.mask.dtype == bool
    assert not predictions[-1].mask.any()
    scores = [dice(p.mask, truth(p.target)) for p in predictions[:-1] if p.target.object == "square"]
    assert np.mean(scores) > 0.6  # a constant prediction of the whole image gets about 0.2
    assert all(p.seconds > 0 for p in predictions[:-1])
    assert not list((run_dir / "nnunet").glob("labels-*"))


def test_finished_experts_are_not_trained_again(trained, monkeypatch):
    run_dir, train, val, _, _, summary = trained
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a child process was started"))
    again = Nnunet(BUDGET, seed=3).fit(train, val, run_dir, Recorder())
    assert again == summary


def test_other_cases_or_budget_do_not_pass_for_finished(trained):
    run_dir, train, val, _, _, _ = trained
    more = BUDGET.model_copy(update={"epochs": 4})
    for experts in (plan_experts(train[1:], val, BUDGET, 3), plan_experts(train, val, more, 3)):
        assert read_summary(run_dir / "nnunet" / experts[0]["name"], experts[0]["key"]) is None


def test_unreadable_mask_is_a_user_error_that_names_it(tmp_path):
    train, val, _ = make_samples(tmp_path / "data")
    train[0].targets[0].mask_file.write_bytes(b"no image")
    with pytest.raises(UserError, match=train[0].targets[0].mask_file.name):
        Nnunet(BUDGET).fit(train, val, tmp_path, Recorder())
    (log,) = tmp_path.glob("nnunet/*/nnunet.log")
    assert "Traceback" in log.read_text()
    assert not list((tmp_path / "nnunet").glob("scratch-*"))


@pytest.mark.slow
def test_an_uncut_budget_leaves_everything_to_nnunet(tmp_path):
    train, val, test = ([s for s in part if s.dataset == "colour"] for part in make_samples(tmp_path / "data"))
    method = Nnunet(NnunetBudget(epochs=1, iterations_per_epoch=1))
    summary = method.fit(train, val, tmp_path, Recorder())
    (folder,) = (tmp_path / "nnunet").iterdir()
    plan = json.loads((folder / "plans.json").read_text())["configurations"]["2d"]
    assert summary.budget.endswith(f"patches of {'x'.join(map(str, plan['patch_size']))} px, 1.9 M parameters each")
    assert plan["architecture"]["arch_kwargs"]["features_per_stage"][0] == 32, "its own network"
    # its own log says which way the postprocessing was decided
    removed = "Results were improved by removing all but the largest" in (folder / "nnunet.log").read_text()
    chosen = json.loads((folder / "postprocessing.json").read_text())
    assert chosen == ([{"labels_or_regions": [1]}] if removed else [])
    assert not any("cut" in note for note in summary.notes)
    (prediction,) = method.predict(test, Recorder())
    assert prediction.mask.shape == (test[0].height, test[0].width)


def test_predict_without_experts_says_so(tmp_path):
    method = Nnunet(BUDGET)
    method.load(tmp_path)
    with pytest.raises(UserError, match="train them first"):
        next(method.predict([], Recorder()))


def test_build_takes_budget_and_seed():
    spec = RunSpec(suite="s", profile="p", method="nnunet", backbone="-", seed=7, split_hash="x", nnunet=BUDGET)
    method = build(spec)
    assert (method.budget, method.seed) == (BUDGET, 7)
    with pytest.raises(ValueError, match="budget"):
        build(spec.model_copy(update={"nnunet": None}))


def test_object_without_validation_is_validated_on_training_cases(tmp_path):
    train, _, _ = make_samples(tmp_path)
    experts = plan_experts(train, [], BUDGET, 0)
    assert not any(expert["validated"] for expert in experts)
    assert all(case["splits"] == ["train", "val"] for expert in experts for case in expert["cases"])


def test_threads_are_the_parent_s(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert thread_count() == 3


def in_child(script: str, job: dict, folder: Path) -> None:
    """Runs a script beside this file on a job; it prints "equal" at its end. nnU-Net reads its environment when it is
    imported.
    """
    (folder / "job.json").write_text(json.dumps(job))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), str(folder / "job.json")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.endswith("equal\n"), done.stderr[-3000:]


@pytest.mark.slow
def test_in_process_preparation_equals_the_real_commands(tmp_path):
    train, val, _ = make_samples(tmp_path / "data")
    budget = NnunetBudget(epochs=1, iterations_per_epoch=1)
    expert = plan_experts(train, val, budget, 0)[0]
    job = {"scratch": str(tmp_path), "threads": 1, "budget": budget.model_dump(), "experts": [expert]}
    in_child("nnunet_preparation.py", job, tmp_path)


@pytest.mark.slow
def test_prediction_postprocessing_and_split_are_nnunet_s_own(trained, tmp_path):
    run_dir, train, val, test, *_ = trained
    folder = experts_of(run_dir)["grey", "square"]
    method = Nnunet(BUDGET)
    method.load(run_dir)
    sample = replace(test[0], targets=test[0].targets[:1])
    (prediction,) = method.predict([sample], Recorder())
    Image.fromarray(prediction.mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    kept = shutil.copytree(folder, tmp_path / "expert")
    expert = next(e for e in plan_experts(train, val, BUDGET, 3) if e["name"] == folder.name)
    job = {"scratch": str(tmp_path / "scratch"), "threads": 1, "processes": 0, "tile_step": 0.75, "seed": 3}
    job |= {"expert": str(kept), "image": str(sample.image_file), "mask": str(tmp_path / "mask.png")}
    job |= {"postprocess": True, "folder": str(tmp_path / "none"), "budget": BUDGET.model_dump(), "experts": [expert]}
    in_child("nnunet_prediction.py", job, tmp_path)
