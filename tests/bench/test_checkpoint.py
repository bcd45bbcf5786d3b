"""Checkpoints: the newest whole one is found, and training goes on from any of them to the same bits."""

import contextlib
import errno
import json
import random

import numpy as np
import pytest
import torch

from bench import checkpoint
from bench.checkpoint import forget_checkpoints, newest_checkpoint, save_checkpoint
from bench.data.dataset import load_dataset
from bench.data.splits import make_splits
from bench.environment import seed_everything
from bench.errors import UserError
from bench.execute import execute, mark_interrupted, run_state
from bench.methods import METHODS
from bench.runlog import RunLog
from bench.spec import Recipe, RunSpec
from bench.train import batch_loss
from bench.workers import PeerLost, Workers
from models.config import ModelConfig

MODEL = ModelConfig(
    width=32, heads=4, feedforward=64, layers=3, queries=4, pixel_layers=1, text_width=32, text_layers=1, text_heads=2
)
STEPS = 7
RECIPE = Recipe(
    image_size=64,
    steps=STEPS,
    batch_images=2,
    prompts_per_image=2,
    learning_rate=2e-3,
    warmup_steps=3,
    validate_every=3,
)


class Killed(BaseException):
    """Ends a run at once, as a kill does, as far as its files are concerned."""


class Until(RunLog):
    """Ends the run when it reports `last`."""

    def __init__(self, run_dir, last):
        super().__init__(run_dir)
        self.last = last

    def progress(self, phase, step, total):
        if step == self.last:
            raise Killed


@pytest.fixture
def splits(toy):
    return make_splits([load_dataset(toy)])


def spec_of(splits, method="boltzformer", **changes):
    names = {"suite": "test", "profile": "test", "method": method, "backbone": "hiera_xt", "seed": 0}
    return RunSpec(**names, split_hash=splits.hash, recipe=RECIPE.model_copy(update=changes), model=MODEL)


def fit(spec, splits, run_dir, last=None):
    run_dir.mkdir(parents=True, exist_ok=True)
    log = RunLog(run_dir) if last is None else Until(run_dir, last)
    return METHODS[spec.method].build(spec).fit(splits.train, splits.val, run_dir, log)


def weights(run_dir):
    return torch.load(run_dir / "model.pt", weights_only=True)


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def curve(run_dir):
    rows = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    times = [row.pop("time") for row in rows]
    assert times == sorted(times)
    return rows


def test_the_newest_two_are_kept_and_the_newest_is_read(tmp_path):
    for step in (5, 90, 100):
        save_checkpoint(tmp_path, step, {"step": step, "weights": torch.arange(step)})
    (tmp_path / "resume-notes.pt").write_text("not ours")
    assert sorted(path.name[:15] for path in tmp_path.iterdir()) == [
        "resume-00000090",
        "resume-00000100",
        "resume-notes.pt",
    ]
    file, state = newest_checkpoint(tmp_path)
    assert file.name.startswith("resume-00000100") and torch.equal(state["weights"], torch.arange(100))
    forget_checkpoints(tmp_path)
    assert newest_checkpoint(tmp_path) is None and len(list(tmp_path.iterdir())) == 1


@pytest.mark.fault
@pytest.mark.parametrize("damage", ["torn", "altered", "empty"])
def test_a_damaged_one_is_passed_over(damage, tmp_path, capsys):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step, "weights": torch.ones(1000)})
    file, _ = newest_checkpoint(tmp_path)
    content = file.read_bytes()
    middle = len(content) // 2
    kinds = {
        "torn": content[:middle],
        "altered": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
    }
    file.write_bytes(kinds[damage])
    assert newest_checkpoint(tmp_path)[1]["step"] == 1
    assert f"{file.name} is torn or altered" in capsys.readouterr().out
    # training is at step 1 again: what it saves on the way pushes no whole one out
    for step, kept in ((2, [1, 2]), (3, [2, 3])):
        save_checkpoint(tmp_path, step, {"step": step, "weights": torch.ones(10)})
        assert [torch.load(path, weights_only=True)["step"] for path in sorted(tmp_path.glob("resume-*.pt"))] == kept


@pytest.mark.fault
def test_with_both_damaged_what_is_saved_next_stays(tmp_path):
    for step in (90, 100):
        save_checkpoint(tmp_path, step, {"step": step})
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    assert newest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 10, {"step": 10})
    assert newest_checkpoint(tmp_path)[1]["step"] == 10
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("method", "ema"), [("boltzformer", 0.0), ("sam3", 0.0), ("boltzformer", 0.8)])
def test_training_goes_on_from_any_step_to_the_same_bits(method, ema, splits, tmp_path, monkeypatch):
    """Killed after each step in turn, with a checkpoint at every step, at validations only, and none at all."""
    spec = spec_of(splits, method, ema=ema)
    whole = tmp_path / "whole" / spec.run_id
    summary = fit(spec, splits, whole)
    for interval, kills in ((0.0, range(1, STEPS + 1)), (600.0, (2, 5, 4))):
        monkeypatch.setattr("bench.train.CHECKPOINT_INTERVAL", interval)
        run_dir = tmp_path / f"{interval}" / spec.run_id
        for last in kills:
            with pytest.raises(Killed):
                fit(spec, splits, run_dir, last)
        resumed = fit(spec, splits, run_dir)
        assert same_bits(weights(run_dir), weights(whole)) and curve(run_dir) == curve(whole)
        assert (resumed.best_val_dice, resumed.images_seen, resumed.budget, resumed.given) == (
            summary.best_val_dice,
            summary.images_seen,
            summary.budget,
            summary.given,
        )


def test_what_python_and_numpy_have_drawn_is_not_drawn_again(splits, tmp_path, monkeypatch):
    """As a decoder of another package may do while it trains."""
    shaken = lambda *words: batch_loss(*words) * (1 + random.random() + np.random.rand())  # noqa: E731
    monkeypatch.setattr("bench.train.batch_loss", shaken)
    monkeypatch.setattr("bench.train.CHECKPOINT_INTERVAL", 0.0)
    spec = spec_of(splits)
    seed_everything(0)
    fit(spec, splits, tmp_path / "whole")
    for last in (2, 5, None):
        seed_everything(0)
        with pytest.raises(Killed) if last else contextlib.nullcontext():
            fit(spec, splits, tmp_path / "killed", last)
    assert same_bits(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_a_checkpoint_of_another_model_is_told_with_the_fix(splits, tmp_path):
    spec = spec_of(splits)
    with pytest.raises(Killed):
        fit(spec, splits, tmp_path, 5)
    wider = spec.model_copy(update={"model": MODEL.model_copy(update={"width": 64})})
    with pytest.raises(UserError, match=r"resume-00000003-.*\.pt is not a checkpoint of this run .*: remove it"):
        fit(wider, splits, tmp_path)


@pytest.mark.parametrize(
    "garbage",
    [
        {"model": []},
        {"optimizer": {"state": {}, "param_groups": 3}},
        {"optimizer": None},
        {"schedule": 1e999},
        {"random": {"cpu": torch.zeros(3), "sampling": {}, "python": (), "numpy": ()}},
        {"random": {"cpu": torch.get_rng_state(), "sampling": (1 << 80, 0), "python": (3, (-1,), None), "numpy": 1}},
        {"progress": {"step": 1, "speed": 2}},
    ],
)
def test_a_checkpoint_that_holds_anything_is_told_with_the_fix(garbage, splits, tmp_path):
    """Its name has the hash of its bytes, as whoever made it can compute."""
    with pytest.raises(Killed):
        fit(spec_of(splits), splits, tmp_path, 5)
    _, state = newest_checkpoint(tmp_path)
    forget_checkpoints(tmp_path)
    save_checkpoint(tmp_path, 3, state | garbage)
    with pytest.raises(UserError, match=r"resume-00000003-.*\.pt is not a checkpoint of this run .*: remove it"):
        fit(spec_of(splits), splits, tmp_path)


def test_workers_that_would_go_on_from_different_steps_do_not(splits, tmp_path, monkeypatch):
    """One sees the newest checkpoint, another the one before."""
    monkeypatch.setattr(Workers, "gather", lambda self, *values: [list(values), [values[0] - 3.0]])
    with pytest.raises(PeerLost, match=r"from steps \[-3, 0\]"):
        fit(spec_of(splits), splits, tmp_path)


@pytest.mark.fault
def test_a_full_disk_at_a_checkpoint_does_not_stop_training(splits, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    fit(spec_of(splits), splits, tmp_path)
    assert "no checkpoint at step 3" in capsys.readouterr().out and newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (RuntimeError("no predictions"), False),
        (FloatingPointError("not finite"), False),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "records.parquet"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (UserError("a file of yours"), True),
        (torch.OutOfMemoryError("out of memory"), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failed_trial_begins_anew_unless_what_it_was_given_failed(error, goes_on, splits, tmp_path, monkeypatch):
    suite = tmp_path / "suite"
    suite.mkdir()
    splits.save(suite / "splits.json")
    (suite / "suite.json").write_text("{}")
    spec = spec_of(splits)
    run_dir = suite / spec.run_id
    predict = METHODS["boltzformer"].build(spec).__class__.predict

    def broken(*args):
        raise error

    monkeypatch.setattr("bench.train.TrainedSegmenter.predict", broken)
    assert execute(spec, suite) == "failed" and newest_checkpoint(run_dir)[1]["progress"]["step"] == STEPS
    monkeypatch.setattr("bench.train.TrainedSegmenter.predict", predict)
    mark_interrupted(run_dir, ("running", "failed"))  # as `bench run` does before it tries again
    forget, states = checkpoint.forget_checkpoints, []

    def forget_and_tell(folder):
        states.append(run_state(folder)["state"])
        forget(folder)

    monkeypatch.setattr("bench.execute.forget_checkpoints", forget_and_tell)
    assert execute(spec, suite) == "finished" and newest_checkpoint(run_dir) is None
    assert ("goes on" in (run_dir / "output.log").read_text()) == goes_on
    assert states[-1] == "finished", "killed in between it has either"
