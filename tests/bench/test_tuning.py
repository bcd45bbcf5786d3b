"""Real Ray on this machine: trials in workers, side by side, failing alone, and gone after Ctrl-C."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench import tuning
from bench.data.dataset import load_dataset
from bench.data.splits import make_splits
from bench.environment import Hardware
from bench.errors import UserError
from bench.execute import run_state
from bench.methods import make_spec
from bench.spec import NnunetBudget
from experiments import SUITES
from experiments.profiles import PROFILES

ROOT = Path(__file__).resolve().parents[2]
TWO_CORES = Hardware(2, 4.0, ())
PROFILE = PROFILES["smoke"]


@pytest.fixture
def suite(squares, tmp_path):
    """A suite folder with splits and two location priors."""
    folder = tmp_path / "runs" / "suite"
    folder.mkdir(parents=True)
    splits = make_splits([load_dataset(squares)])
    splits.save(folder / "splits.json")
    specs = [make_spec(SUITES["smoke"], PROFILE, "location_prior", "-", seed, splits.hash) for seed in (0, 1)]
    return folder, specs


def test_ray_and_the_local_loop_write_the_same_records(suite, tmp_path):
    folder, specs = suite
    broken = specs[0].model_copy(update={"split_hash": "f" * 12, "seed": 9})
    tuning.run_trials([*specs, broken], folder, PROFILE, TWO_CORES)
    assert [run_state(folder / spec.run_id)["state"] for spec in specs] == ["finished"] * 2
    failed = run_state(folder / broken.run_id)
    assert failed["state"] == "failed" and "splits.json has split" in failed["error"]
    environment = json.loads((folder / specs[0].run_id / "env.json").read_text())
    assert environment["threads"] == 1, "a trial takes the cores it was given and no more"
    here = tmp_path / "runs" / "here"
    here.mkdir()
    (here / "splits.json").write_text((folder / "splits.json").read_text())
    tuning.run_trials_here(specs, here)
    for spec in specs:
        tables = [pd.read_parquet(place / spec.run_id / "records.parquet") for place in (folder, here)]
        tables = [table.drop(columns="seconds") for table in tables]
        pd.testing.assert_frame_equal(*tables)
        assert len(tables[0]) == 4


def work(share):
    """Each item says that it has begun, waits for another's beginning, and fails if it is called "broken"."""
    for item in share:
        item["begun"].touch()
        deadline = time.time() + 60
        while not item["after"].exists():
            if time.time() > deadline:
                raise TimeoutError(f"{item['name']} waited for {item['after'].name} in vain")
            time.sleep(0.05)
        if item["name"] == "broken":
            raise UserError("mend it")
        (item["begun"].parent / f"{item['name']} ended").touch()
        names = [row["name"] for row in share]
        yield {"item": item["name"], "share": names, "threads": os.environ["OMP_NUM_THREADS"]}


def test_parts_of_a_trial_run_side_by_side_and_their_errors_come_as_they_are(tmp_path):
    def items(*pairs):
        return [{"name": name, "begun": tmp_path / name, "after": tmp_path / after} for name, after in pairs]

    with tuning._ray(TWO_CORES, cpus=1):
        # a and c wait for each other, so one after the other would fail
        events = list(tuning._spread({"cpu": 1}, work, items(("a", "c"), ("b", "a"), ("c", "a"))))
        assert sorted((event["item"], event["share"]) for event in events) == [
            ("a", ["a", "b"]),
            ("b", ["a", "b"]),
            ("c", ["c"]),
        ]
        assert {event["threads"] for event in events} == {"1"}
        # half a core each: three side by side on two cores
        events = list(tuning._spread({"cpu": 0.5}, work, items(("d", "e"), ("e", "f"), ("f", "d"))))
        assert [len(event["share"]) for event in events] == [1, 1, 1]
        with pytest.raises(UserError, match=r"^mend it$"):
            list(tuning._spread({"cpu": 1}, work, items(("long", "never"), ("broken", "long"))))
        time.sleep(15)  # to be ended in; on a busy machine that takes a while
        (tmp_path / "never").touch()
        time.sleep(1)
        assert not (tmp_path / "long ended").exists(), "the error of one part ends the others"
    assert subprocess.run(["false"]).returncode == 1, "this process can still read exit codes"


def deaf(share):
    """Has three events that nobody reads, and hears no interrupt."""
    (item,) = share
    for number in range(4):
        yield {"event": number}
    (item["folder"] / "begun").touch()
    deadline = time.time() + 60
    while time.time() < deadline and not (item["folder"] / "never").exists():
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(0.05)
    (item["folder"] / "ended").touch()


def test_a_part_that_has_unread_events_and_hears_nothing_is_ended_by_force(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "GRACE", 1.0)
    with tuning._ray(TWO_CORES, cpus=1):
        events = tuning._spread({"cpu": 1}, deaf, [{"folder": tmp_path}])
        assert next(events) == {"event": 0}
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        events.close()
        time.sleep(5)  # to be killed in; on a busy machine that takes a while
        (tmp_path / "never").touch()
        time.sleep(1)
        assert not (tmp_path / "ended").exists()


EXPERTS = NnunetBudget(epochs=2, iterations_per_epoch=60, batch_size=4, patch_size=32, features=(8, 16, 16))


def nnunet_suite(data, folder, methods=("nnunet",)):
    """A suite folder with splits of `data`, and specs of nnU-Net's real experts, a small budget each."""
    folder.mkdir(parents=True)
    splits = make_splits([load_dataset(data)])
    splits.save(folder / "splits.json")
    profile = PROFILE.model_copy(update={"nnunet": EXPERTS})
    return [make_spec(SUITES["smoke"], profile, method, "-", 0, splits.hash) for method in methods]


def experts_in(run_dir):
    """expert.json of every expert of a run, by its folder's name."""
    return {file.parent.name: json.loads(file.read_text()) for file in run_dir.glob("nnunet/*/expert.json")}


@pytest.mark.slow
def test_experts_train_side_by_side_to_the_weights_of_one_after_the_other(toy, tmp_path, monkeypatch):
    # a core each in Ray; two threads would add up in another order, on some processors to other weights
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here, there = tmp_path / "here", tmp_path / "there"
    specs = nnunet_suite(toy, here, ("nnunet", "location_prior"))
    nnunet_suite(toy, there)
    tuning.run_trials(specs, there, PROFILE, TWO_CORES)
    tuning.run_trials_here(specs, here)
    run_id = specs[0].run_id
    assert [run_state(there / spec.run_id)["state"] for spec in specs] == ["finished"] * 2
    experts = experts_in(there / run_id)
    assert len(experts) == 2
    assert max(e["began"] for e in experts.values()) < min(e["ended"] for e in experts.values())
    alone = sorted(experts_in(here / run_id).values(), key=lambda expert: expert["began"])
    assert alone[0]["ended"] <= alone[1]["began"]
    for name in experts:
        files = [place / run_id / "nnunet" / name / "weights.pt" for place in (here, there)]
        weights = [torch.load(file) for file in files]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    tables = [pd.read_parquet(place / run_id / "records.parquet").drop(columns="seconds") for place in (here, there)]
    pd.testing.assert_frame_equal(*tables)


def test_a_call_after_the_end_of_ray_starts_no_other_even_where_ray_was_imported_first():
    """Tune's thread makes such calls after Ctrl-C. A Ray that it started was one that nobody stopped."""
    code = """
        import bench
        import ray  # as a method of another package may, before anything of ours needs it
        from bench import tuning
        from bench.environment import Hardware
        with tuning._ray(Hardware(1, 1.0, ()), 1):
            assert ray.get(ray.put(3)) == 3
        try:
            ray.put(3)
        except Exception as error:
            print(type(error).__name__, ray.is_initialized())
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["RaySystemError", "False"], done.stderr


@pytest.mark.fault
@pytest.mark.slow
def test_a_failed_expert_is_named_with_its_log_and_the_finished_one_is_kept(toy, tmp_path):
    folder = tmp_path / "suite"
    (spec,) = nnunet_suite(toy, folder)
    run_dir = folder / spec.run_id
    blocked = run_dir / "nnunet" / "Dataset002_toy-dark-disc" / "weights.pt"
    blocked.mkdir(parents=True)  # nnU-Net's weights cannot be written there
    tuning.run_trials([spec], folder, PROFILE, Hardware(1, 4.0, ()))
    status = run_state(run_dir)
    assert status["state"] == "failed"
    assert f"nnU-Net's Dataset002_toy-dark-disc failed; see {blocked.parent / 'nnunet.log'}" in status["error"]
    assert "IsADirectoryError" in status["error"] or "Is a directory" in status["error"]
    kept = experts_in(run_dir)
    assert list(kept) == ["Dataset001_toy-block"]
    blocked.rmdir()
    tuning.run_trials([spec], folder, PROFILE, TWO_CORES)
    assert run_state(run_dir)["state"] == "finished"
    assert kept.items() <= experts_in(run_dir).items()


@pytest.mark.fault
@pytest.mark.slow
def test_a_killed_driver_leaves_finished_experts_that_are_kept(toy, tmp_path):
    folder = tmp_path / "suite"
    (spec,) = nnunet_suite(toy, folder)
    run_dir = folder / spec.run_id
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), spec.model_dump_json(), "1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    deadline = time.time() + 240
    while not experts_in(run_dir):
        assert time.time() < deadline and driver.poll() is None
        time.sleep(0.05)
    below = descendants(driver.pid)
    driver.kill()
    driver.wait()
    while any(alive(pid) for pid in below):
        assert time.time() < deadline, "processes of Ray or nnU-Net outlive the driver"
        time.sleep(0.2)
    kept = experts_in(run_dir)
    # usually one; the second may just have ended before its process noticed
    # "failed" where the trial still saw its experts go before it went itself, "interrupted" where Ray ended it: all of
    # them are run again
    state = run_state(run_dir)["state"]
    assert kept and state in ("running", "failed", "interrupted"), state
    tuning.run_trials([spec], folder, PROFILE, TWO_CORES)
    assert run_state(run_dir)["state"] == "finished"
    experts = experts_in(run_dir)
    assert len(experts) == 2 and kept.items() <= experts.items()
    steps = [json.loads(line)["step"] for line in (run_dir / "history.jsonl").read_text().splitlines()]
    assert sorted(steps) == [60, 120, 180, 240]
    assert not list(run_dir.glob("nnunet/scratch-*"))


DRIVER = """
import sys
from pathlib import Path
from bench import tuning
from bench.environment import Hardware
from bench.spec import RunSpec
from experiments.profiles import PROFILES
folder, spec, cores = Path(sys.argv[1]), RunSpec.model_validate_json(sys.argv[2]), int(sys.argv[3])
try:
    tuning.run_trials([spec], folder, PROFILES["smoke"], Hardware(cores, 4.0, ()))
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.fault
def test_ctrl_c_stops_the_worker_and_marks_its_trial(suite, squares):
    folder, (spec, _) = suite
    # the worker waits for ever on a splits.json that is a pipe nobody writes to
    (folder / "splits.json").unlink()
    os.mkfifo(folder / "splits.json")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), spec.model_dump_json(), "2"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # tests that run in the background of a shell inherit "ignore SIGINT", and so would the driver
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.time() + 120
    while run_state(folder / spec.run_id)["state"] != "running" and driver.poll() is None:
        assert time.time() < deadline
        time.sleep(0.2)
    workers = descendants(driver.pid)
    assert workers
    driver.send_signal(signal.SIGINT)
    output = driver.communicate(timeout=60)[0]
    assert output.strip() == "stopped", output
    assert run_state(folder / spec.run_id)["state"] == "interrupted"
    deadline = time.time() + 30
    while any(alive(pid) for pid in workers):
        assert time.time() < deadline, "processes of Ray outlive Ctrl-C"
        time.sleep(0.2)


def descendants(pid):
    """All processes below `pid`."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
