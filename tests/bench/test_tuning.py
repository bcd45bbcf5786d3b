"""Real Ray on this machine: trials in workers, side by side, failing alone, and gone after Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from bench import tuning
from bench.data.dataset import load_dataset
from bench.data.splits import make_splits
from bench.environment import Hardware
from bench.execute import run_state
from bench.methods import make_spec
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


def test_a_trial_never_asks_for_more_than_there_is():
    profile = PROFILE.model_copy(update={"cpus_per_trial": 8, "gpus_per_trial": 1})
    assert tuning._resources(profile, TWO_CORES) == {"cpu": 2}
    assert tuning._resources(profile, Hardware(16, 64.0, ("A",))) == {"cpu": 8, "gpu": 1}
    assert tuning._resources(PROFILE, Hardware(16, 64.0, ("A",))) == {"cpu": PROFILE.cpus_per_trial}


DRIVER = """
import sys
from pathlib import Path
from bench import tuning
from bench.environment import Hardware
from bench.spec import RunSpec
from experiments.profiles import PROFILES
folder, spec = Path(sys.argv[1]), RunSpec.model_validate_json(sys.argv[2])
try:
    tuning.run_trials([spec], folder, PROFILES["smoke"], Hardware(2, 4.0, ()))
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_stops_the_worker_and_marks_its_trial(suite, squares):
    folder, (spec, _) = suite
    # the worker waits for ever on a splits.json that is a pipe nobody writes to
    (folder / "splits.json").unlink()
    os.mkfifo(folder / "splits.json")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), spec.model_dump_json()],
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
