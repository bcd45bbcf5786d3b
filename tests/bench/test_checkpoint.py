"""Checkpoints: the newest whole one is found, and training goes on from any of them to the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench import checkpoint
from bench.checkpoint import forget_checkpoints, newest_checkpoint, save_checkpoint
from bench.data.dataset import load_dataset
from bench.data.splits import make_splits
from bench.errors import UserError
from bench.execute import execute, mark_interrupted, run_state
from bench.methods import METHODS
from bench.runlog import RunLog
from bench.spec import Recipe, RunSpec
from models.config import ModelConfig

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
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


def spec_of(splits, method="boltzformer"):
    names = {"suite": "test", "profile": "test", "method": method, "backbone": "hiera_xt", "seed": 0}
    return RunSpec(**names, split_hash=splits.hash, recipe=RECIPE, model=MODEL)


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
    assert f"{file.name} is torn or was altered" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["boltzformer", "sam3"])
def test_training_goes_on_from_any_step_to_the_same_bits(method, splits, tmp_path, monkeypatch):
    """Killed after each step in turn, with a checkpoint at every step, at validations only, and none at all."""
    spec = spec_of(splits, method)
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


def test_a_checkpoint_of_another_model_is_told_with_the_fix(splits, tmp_path):
    spec = spec_of(splits)
    with pytest.raises(Killed):
        fit(spec, splits, tmp_path, 5)
    wider = spec.model_copy(update={"model": MODEL.model_copy(update={"width": 64})})
    with pytest.raises(UserError, match=r"resume-00000003-.*\.pt is not a checkpoint of this run .*: remove it"):
        fit(wider, splits, tmp_path)


def test_a_full_disk_at_a_checkpoint_does_not_stop_training(splits, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_file", full)
    fit(spec_of(splits), splits, tmp_path)
    assert "no checkpoint at step 3" in capsys.readouterr().out and newest_checkpoint(tmp_path) is None


def test_a_finished_trial_leaves_none_and_a_failed_one_begins_anew(splits, tmp_path, monkeypatch):
    suite = tmp_path / "suite"
    suite.mkdir()
    splits.save(suite / "splits.json")
    (suite / "suite.json").write_text("{}")
    spec = spec_of(splits)
    run_dir = suite / spec.run_id
    predict = METHODS["boltzformer"].build(spec).__class__.predict

    def broken(*args):
        raise RuntimeError("no predictions")

    monkeypatch.setattr("bench.train.TrainedSegmenter.predict", broken)
    assert execute(spec, suite) == "failed" and newest_checkpoint(run_dir)[1]["progress"]["step"] == STEPS
    monkeypatch.setattr("bench.train.TrainedSegmenter.predict", predict)
    mark_interrupted(run_dir, ("running", "failed"))  # as `bench run` does before it tries again
    assert execute(spec, suite) == "finished" and newest_checkpoint(run_dir) is None
    assert "goes on" not in (run_dir / "output.log").read_text()


def killed(command, folder, when):
    """Starts the command, and kills its process group when `when(Unix time of the start)` says so."""
    started, output = time.time(), subprocess.DEVNULL
    running = subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, start_new_session=True, stdout=output, stderr=output
    )
    while running.poll() is None and time.time() - started < 120:
        if when(started):
            os.killpg(running.pid, signal.SIGKILL)
        time.sleep(0.02)
    assert running.wait() in (0, -signal.SIGKILL)


@pytest.fixture
def smoke(squares, tmp_path, bench):
    """The command into a folder of its own, the run folder there, and one that was left alone."""
    words = ["run", "--suite", "smoke", "--methods", "boltzformer", "--data", str(squares), "--executor", "local"]

    def ends_as_if_left_alone():
        for name in ("killed", "whole"):
            outcome = bench(*words, "--runs-dir", tmp_path / name)
            assert outcome.returncode == 0, outcome.stderr
        whole, run_dir = (next(tmp_path.glob(f"{name}/*/boltzformer-*")) for name in ("whole", "killed"))
        assert same_bits(weights(run_dir), weights(whole)) and curve(run_dir) == curve(whole)
        records = [pd.read_parquet(folder / "records.parquet").drop(columns="seconds") for folder in (run_dir, whole)]
        pd.testing.assert_frame_equal(*records)
        assert not list(run_dir.glob("resume*"))
        return (run_dir / "output.log").read_text()

    return [sys.executable, "-m", "bench", *words, "--runs-dir", "killed"], ends_as_if_left_alone


def test_the_killed_command_goes_on_from_its_checkpoint(smoke, tmp_path):
    command, ends_as_if_left_alone = smoke
    killed(command, tmp_path, lambda started: any(tmp_path.glob("killed/*/*/resume-00000010-*.pt")))
    assert "goes on from step 10" in ends_as_if_left_alone()


@pytest.mark.parametrize(("executor", "number"), [("local", signal.SIGINT), ("ray", signal.SIGTERM)])
def test_asked_to_stop_it_leaves_a_checkpoint_of_the_last_step(executor, number, smoke, tmp_path):
    """Ctrl-C and SIGTERM: exit 130 with the command that goes on, and the run ends as if left alone."""
    command, ends_as_if_left_alone = smoke
    command[command.index("local")] = executor
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # tests that run in the background of a shell inherit "ignore SIGINT", and so would the driver
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.time() + 120
    while not any(tmp_path.glob("killed/*/*/resume-00000010-*.pt")):
        assert running.poll() is None and time.time() < deadline
        time.sleep(0.02)
    running.send_signal(number)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 130, said
    assert "stopping after this step" in said and "Go on where it stopped with:\n  bench run --suite smoke" in said
    (run_dir,) = tmp_path.glob("killed/*/boltzformer-*")
    assert run_state(run_dir)["state"] == "interrupted" and not (run_dir.parent / "stop").exists()
    _, state = newest_checkpoint(run_dir)
    step = state["progress"]["step"]
    assert 10 < step <= 20
    assert f"goes on from step {step}" in ends_as_if_left_alone()


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_the_same(smoke, tmp_path):
    """Anywhere from before the first step to after the last record."""
    command, ends_as_if_left_alone = smoke
    moments = random.Random(0)
    for _ in range(20):
        moment, begun = moments.uniform(0, 6), []

        def late(started, moment=moment, begun=begun):
            if not begun and any(file.stat().st_mtime > started for file in tmp_path.glob("killed/*/*/spec.json")):
                begun.append(time.time())
            return bool(begun) and time.time() - begun[0] > moment

        killed(command, tmp_path, late)
    ends_as_if_left_alone()
