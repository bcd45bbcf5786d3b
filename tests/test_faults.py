"""What breaks a run in real life, done to `bench` for real: each time the same command goes on to the same result.

`pytest -m fault` runs these and their like of the other files.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from bench import tracking
from bench.checkpoint import newest_checkpoint
from bench.execute import run_state

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
WAIT = 180  # seconds for anything to happen
MOUNT = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$1" && umount "$1"', "-"]

CHECKPOINTS = ("--set", "validate_every=4")  # at 4, 8, 12, 16 and 20
# a terminal sends Ctrl-C to all processes of the command
ASK = {
    "ctrl-c": lambda pid: os.killpg(pid, signal.SIGINT),
    "sigterm": lambda pid: os.kill(pid, signal.SIGTERM),
}

pytestmark = pytest.mark.fault


def start(command, folder, **options):
    """The command in `folder`, in a process group of its own, hearing Ctrl-C, its output in folder/output.txt."""
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=ENVIRONMENT,
            stdout=output,
            stderr=output,
            start_new_session=True,
            # tests that run in the background of a shell inherit "ignore SIGINT", and so would the driver
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            **options,
        )


def ended(running, folder):
    """The exit code of a command and what it has said."""
    return running.wait(WAIT), (folder / "output.txt").read_text()


def wait_for(condition, running=None):
    """Waits until `condition()` holds; whether it did before `running` has ended."""
    deadline = time.time() + WAIT
    while not (held := condition()) and (running is None or running.poll() is None):
        assert time.time() < deadline
        time.sleep(0.02)
    return bool(held)


def kill_group(running, is_alive):
    """Ends the process group of a command at once, and waits until what it has started has noticed."""
    below = psutil.Process(running.pid).children(recursive=True)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() in (-signal.SIGKILL, 0), "0: it has ended while we looked for its processes"
    wait_for(lambda: not any(is_alive(process) for process in below))


def assert_equal_runs(runs, others, curves_in_folder):
    """Two folders of runs hold the same trials with the same curves, weights, records and masks; the first has them in
    its MLflow, each point once.
    """
    pairs = list(zip(sorted(runs.glob("*/*-seed*")), sorted(others.glob("*/*-seed*")), strict=True))
    assert pairs
    for one, other in pairs:
        assert one.name == other.name and curve(one) == curve(other)
        weights = [file.relative_to(one) for file in [*one.glob("model.pt"), *one.glob("nnunet/*/weights.pt")]]
        for file in weights:
            assert same_bits(torch.load(one / file), torch.load(other / file)), file
        for name in ("records.parquet", "predictions.parquet"):
            tables = [pd.read_parquet(run / name).drop(columns="seconds", errors="ignore") for run in (one, other)]
            pd.testing.assert_frame_equal(*tables, check_exact=True)
        assert not list(one.glob("resume*")) and not list(one.glob("nnunet/scratch-*")) and not list(one.glob(".*.tmp"))
    assert_in_mlflow_once(runs, curves_in_folder)


def assert_in_mlflow_once(runs, curves_in_folder):
    """One MLflow run for each suite and each trial, with each point of the trial's history.jsonl once."""
    # a copy of its own: MLflow keeps a file open that may since have been removed and made anew
    copy = shutil.copyfile(runs / "mlflow.db", runs.parent / f"mlflow-{time.time_ns()}.db")
    client = tracking.client(f"sqlite:///{copy}")
    found = client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    keys = [run.data.tags["bench_key"] for run in found]
    assert len(keys) == len(set(keys)) == len([*runs.glob("*/suite.json"), *runs.glob("*/*-seed*")]), keys
    assert not [key for key in keys if key.startswith("replaced")]
    for run_dir in runs.glob("*/*-seed*"):
        run_id = run_state(run_dir)["in_mlflow"]
        for name, points in curves_in_folder(run_dir).items():
            history = [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
            assert sorted(history) == points, (run_dir, name)


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def curve(run_dir):
    """The steps of history.jsonl without the times, which must go up; nnU-Net's experts take turns in any order."""
    rows = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    times = [row.pop("time") for row in rows]
    assert times == sorted(times)
    return sorted(rows, key=lambda row: row["step"])


@pytest.fixture(scope="module")
def whole(bench, made_once):
    """whole(words): the folder of runs of a command that was left alone."""

    def runs_of(words):
        def make(folder):
            outcome = bench(*words, "--runs-dir", folder, OMP_NUM_THREADS="1")
            assert outcome.returncode == 0, outcome.stdout[-2000:] + outcome.stderr[-2000:]

        return made_once("whole-" + hashlib.sha256("\0".join(words).encode()).hexdigest()[:12], make)

    return runs_of


@pytest.fixture
def suite(bench, datasets, whole, curves_in_folder, tmp_path):
    """suite(methods, executor, data): the command that runs the smoke suite into killed/, and
    `ends_as_if_left_alone()`, which gives it again and returns the trials' output.log.
    """

    def make(methods="boltzformer", executor="local", data="squares", more=()):
        words = ("run", "--suite", "smoke", "--methods", methods, "--data", str(datasets / data), *more, "--executor")

        def ends_as_if_left_alone():
            outcome = bench(*words, executor, "--runs-dir", tmp_path / "killed", OMP_NUM_THREADS="1")
            assert outcome.returncode == 0, outcome.stdout[-2000:] + outcome.stderr[-2000:]
            assert_equal_runs(tmp_path / "killed", whole((*words, "local")), curves_in_folder)
            return "".join(file.read_text() for file in tmp_path.glob("killed/*/*/output.log"))

        return [sys.executable, "-m", "bench", *words, executor, "--runs-dir", "killed"], ends_as_if_left_alone

    return make


def at_step_10(folder):
    """Whether the first checkpoint is there."""
    return any(folder.glob("killed/*/*/resume-00000010-*.pt"))


def test_the_killed_command_goes_on_from_its_checkpoint(suite, is_alive, tmp_path):
    command, ends_as_if_left_alone = suite()
    running = start(command, tmp_path)
    assert wait_for(lambda: at_step_10(tmp_path), running)
    kill_group(running, is_alive)
    assert "goes on from step 10" in ends_as_if_left_alone()


def kill_driver(running):
    """Ends the command alone; its Ray and its trial may live on for a moment."""
    running.kill()
    assert running.wait() in (-signal.SIGKILL, 0)


def kill_worker(running):
    """Ends the process that Ray has for the trial; whether there was one."""
    below = psutil.Process(running.pid).children(recursive=True)
    workers = [process for process in below if process.name().startswith("ray::ImplicitFun")]
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
    return bool(workers)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_killed_at_twenty_random_moments_it_ends_the_same(executor, suite, curves_in_folder, is_alive, tmp_path):
    """Ten by each executor: two before the trial begins, eight between there and the end of the process, one in each
    part of that time. Locally it is the process group that is killed; with Ray the group, the command alone, or the
    trial's worker, which the command then replaces.
    """
    command, ends_as_if_left_alone = suite(executor=executor, more=CHECKPOINTS)

    def begins(runs, since):
        return any(file.stat().st_mtime > since for file in tmp_path.glob(f"{runs}/*/*/env.json"))

    def has_ended():
        assert_equal_runs(tmp_path / "killed", tmp_path / "timed", curves_in_folder)
        shutil.rmtree(tmp_path / "killed")

    since = time.time()
    running = start([*command[:-1], "timed"], tmp_path)
    assert wait_for(lambda: begins("timed", since), running)
    before = time.time() - since
    assert running.wait(WAIT) == 0
    after = time.time() - since - before
    chance = random.Random()
    seed = chance.randrange(2**32)
    print(f"random moments by seed {seed}")  # pytest shows it where the test fails
    chance.seed(seed)
    parts = list(range(10))
    chance.shuffle(parts)
    victims = chance.sample(["worker", "driver", "group"] * 4, 10) if executor == "ray" else ["group"] * 10
    had_checkpoint = 0
    while parts:
        fresh, since, part = not (tmp_path / "killed").exists(), time.time(), parts[-1] + chance.random()
        running = start(command, tmp_path)
        if part < 2:
            seconds = part / 2 * before
        else:
            wait_for(lambda since=since: begins("killed", since), running)
            seconds = (part - 2) / 8 * after
            began = time.time()
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert running.wait(seconds) == 0
            # it has ended before: it went on from so late, or the machine is quicker now. Again from the beginning
            after = min(after, time.time() - began) if fresh and part >= 2 else after
            has_ended()
            continue
        parts.pop()
        victim = victims.pop()
        print(f"{victim} after {time.time() - since:.1f} s")
        had_checkpoint += any(tmp_path.glob("killed/*/*/resume-*.pt"))
        if victim == "worker" and kill_worker(running):
            assert running.wait(WAIT) == 0
            has_ended()
        elif victim == "group":
            kill_group(running, is_alive)
        else:
            kill_driver(running)
    assert had_checkpoint
    ends_as_if_left_alone()


def test_a_killed_driver_may_be_followed_at_once(suite, tmp_path):
    """Its Ray and its trial may live on for a moment: the next command waits for them."""
    command, ends_as_if_left_alone = suite(executor="ray")
    running = start(command, tmp_path)
    assert wait_for(lambda: at_step_10(tmp_path), running)
    kill_driver(running)
    ends_as_if_left_alone()


def test_a_second_command_on_the_folder_is_refused_and_the_first_goes_on(bench, suite, tmp_path):
    command, ends_as_if_left_alone = suite()
    running = start(command, tmp_path)
    assert wait_for(lambda: any(tmp_path.glob("killed/*/*/spec.json")), running)
    second = bench(*command[3:-1], tmp_path / "killed")
    assert second.returncode == 2 and "Traceback" not in second.stderr, second.stderr
    told = f"is in use by `bench run` of process {running.pid} on {socket.gethostname()}: wait for it, or choose"
    assert told in second.stderr, second.stderr
    code, said = ended(running, tmp_path)
    assert code == 0, said
    ends_as_if_left_alone()


@pytest.mark.parametrize(("executor", "ask"), [("local", "ctrl-c"), ("ray", "ctrl-c"), ("ray", "sigterm")])
def test_asked_to_stop_it_leaves_a_checkpoint_of_the_last_step(executor, ask, suite, tmp_path):
    """Ctrl-C and SIGTERM: exit 130 with the command that goes on, and the run ends as if left alone."""
    # no checkpoint before the end but that of the stop; the history's first line is that of step 10
    command, ends_as_if_left_alone = suite(executor=executor, more=("--set", "validate_every=20"))
    running = start(command, tmp_path)
    assert wait_for(lambda: any(file.stat().st_size for file in tmp_path.glob("killed/*/*/history.jsonl")), running)
    ASK[ask](running.pid)
    code, said = ended(running, tmp_path)
    assert code == 130, said
    assert "stopping after this step" in said and "Go on where it stopped with:\n  bench run --suite smoke" in said
    (run_dir,) = tmp_path.glob("killed/*/boltzformer-*")
    assert run_state(run_dir)["state"] == "interrupted" and not (run_dir.parent / "stop").exists()
    _, state = newest_checkpoint(run_dir)
    step = state["progress"]["step"]
    assert 10 <= step <= 20
    assert f"goes on from step {step}" in ends_as_if_left_alone()


def test_a_killed_worker_is_replaced_while_the_command_goes_on(suite, tmp_path):
    """As the kernel does when memory is short: Ray's process of the trial is gone, the trial goes on in another."""
    command, ends_as_if_left_alone = suite(executor="ray")
    running = start(command, tmp_path)
    assert wait_for(lambda: at_step_10(tmp_path), running)
    assert kill_worker(running)
    code, said = ended(running, tmp_path)
    assert code == 0, said
    assert "goes on from step 10" in ends_as_if_left_alone()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "ask"), [("local", "ctrl-c"), ("ray", "ctrl-c"), ("ray", "sigterm"), ("ray", None)]
)
def test_stopped_or_killed_within_an_expert_of_nnunet(executor, ask, suite, is_alive, tmp_path):
    """Finished experts are kept, the one in the middle is trained again, no process is left behind."""
    command, ends_as_if_left_alone = suite("nnunet", executor, "toy")
    running = start(command, tmp_path)

    def second_expert_has_begun():
        folders = list(tmp_path.glob("killed/*/nnunet-*/nnunet/Dataset*"))
        return len(folders) == 2 and any((folder / "expert.json").exists() for folder in folders)

    # side by side they end together
    middle = second_expert_has_begun if executor == "local" else lambda: any(tmp_path.glob("killed/*/*/nnunet/Data*"))
    assert wait_for(middle, running)
    below = psutil.Process(running.pid).children(recursive=True)
    if ask is None:
        kill_group(running, is_alive)
    else:
        ASK[ask](running.pid)
        code, said = ended(running, tmp_path)
        assert code == 130, said
        wait_for(lambda: not any(is_alive(process) for process in below))
    (run_dir,) = tmp_path.glob("killed/*/nnunet-*")
    kept = {file: file.read_text() for file in run_dir.glob("nnunet/*/expert.json")}
    assert len(kept) == 1 or executor == "ray"
    ends_as_if_left_alone()
    assert all(file.read_text() == text for file, text in kept.items())


@pytest.mark.slow
def test_a_killed_search_finds_what_it_would_have_found(bench, datasets, whole, is_alive, tmp_path):
    words = ("tune", "seem", "--suite", "smoke", "--space", "lr=1e-5,2e-3,5e-4", "--data", str(datasets / "toy"))
    words += ("--executor", "local")
    for trials in (1, 2):  # in the middle of the first, of the second
        running = start([sys.executable, "-m", "bench", *words, "--runs-dir", "killed"], tmp_path)

        def in_the_middle(trials=trials):
            """At the first rung, or just stopped there."""
            histories = list(tmp_path.glob("killed/*/seem-*/history.jsonl"))
            return len(histories) == trials and all("val_loss" in file.read_text() for file in histories)

        assert wait_for(in_the_middle, running)
        kill_group(running, is_alive)
    outcome = bench(*words, "--runs-dir", tmp_path / "killed", OMP_NUM_THREADS="1")
    assert outcome.returncode == 0, outcome.stdout[-2000:] + outcome.stderr[-2000:]
    found, expected = (
        json.loads(file.read_text())
        for runs in (tmp_path / "killed", whole(words))
        for file in runs.glob("*/tuned-*.json")
    )
    assert found == expected
    assert found["best"]


@pytest.mark.skipif(
    subprocess.run([*MOUNT, "/mnt"], capture_output=True, check=False).returncode != 0,
    reason="needs the right to mount a tmpfs (root), for a disk that is full",
)
@pytest.mark.parametrize(
    ("room", "code", "message"),
    [
        # weights, but not a checkpoint beside them
        (1.5, 0, "no checkpoint at step 10: no space left on device"),
        # not even weights
        (0.5, 2, "no space left on device while writing"),
    ],
)
def test_a_full_disk(room, code, message, suite, whole, tmp_path):
    """Real: killed/ is a small tmpfs, which gets larger for the second try."""
    command, ends_as_if_left_alone = suite()
    runs = whole((*command[3:-2],))
    (weights,) = runs.glob("*/*/model.pt")
    others = sum(f.stat().st_size for f in runs.rglob("*") if f.is_file() and f != weights)
    size = int(others + 2**20 + room * weights.stat().st_size)
    (tmp_path / "killed").mkdir()
    # the mount is of this shell and what it starts: what is written there is copied out before it goes
    script = (
        'mount -t tmpfs -o size="$1" none killed && shift && "$@"; echo "code $?"; '
        "mkdir kept && cp -r killed/. kept && umount killed && cp -r kept/. killed"
    )
    _, said = ended(start(["unshare", "-m", "sh", "-c", script, "-", str(size), *command], tmp_path), tmp_path)
    assert f"code {code}" in said, said
    (run_dir,) = tmp_path.glob("killed/*/boltzformer-*")
    told = (run_dir / "output.log").read_text() + (run_state(run_dir).get("error") or "")
    assert message in told, told
    assert "Traceback" not in said
    ends_as_if_left_alone()
