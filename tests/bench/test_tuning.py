"""Real Ray on this machine: trials in workers, side by side, failing alone, and gone after Ctrl-C."""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from bench import tuning
from bench.data.dataset import load_dataset
from bench.data.splits import make_splits
from bench.environment import Hardware
from bench.errors import PartLost, UserError
from bench.execute import run_state
from bench.methods import make_spec
from bench.spec import NnunetBudget
from experiments import SUITES
from experiments.profiles import PROFILES

ROOT = Path(__file__).resolve().parents[2]
TWO_CORES = Hardware(2, 4.0, ())
PROFILE = PROFILES["smoke"]


def test_ray_and_the_local_loop_write_the_same_records(two_priors, tmp_path):
    folder, specs = two_priors
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


def test_no_reference_is_left_for_another_thread_to_collect_while_ray_shuts_down(two_priors, monkeypatch):
    """Ray's answer to that is the end of the process."""
    import ray

    shutdown, left = ray.shutdown, []

    def watched_shutdown():
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        held = {id(part): part for one in gc.garbage for part in gc.get_referents(one)}
        left.append(sum(isinstance(part, ray.ObjectRef) for part in held.values()))
        gc.garbage.clear()
        shutdown()

    monkeypatch.setattr(ray, "shutdown", watched_shutdown)
    folder, specs = two_priors
    tuning.run_trials(specs, folder, PROFILE, TWO_CORES)
    assert left == [0]


def meet(patience, spec, suite_dir, run_dir, tracker, spread, micro_batch=None):
    """A trial's work: it says when it has begun, and ends when another has begun too, or after `patience` seconds."""
    began = time.time()
    (suite_dir / f"begun-{spec.seed}").touch()
    while len(list(suite_dir.glob("begun-*"))) < 2 and time.time() < began + patience:
        time.sleep(0.05)
    return {"began": began, "ended": time.time(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}


@pytest.mark.parametrize("gpus", [0.5, 1.0])
def test_trials_share_a_gpu_as_far_as_the_profile_says(two_priors, gpus):
    """A GPU that Ray alone believes in."""
    folder, specs = two_priors
    profile = PROFILE.model_copy(update={"gpus_per_trial": gpus, "memory_gib_per_trial": 0})
    together = gpus == 0.5
    work = partial(meet, 120 if together else 5)  # seconds; the first of two that are together waits for the other
    tuning.run_trials(specs, folder, profile, Hardware(2, 8.0, ("A",)), work=work)
    states = [run_state(folder / spec.run_id) for spec in specs]
    assert [state["state"] for state in states] == ["finished"] * 2, states
    first, second = sorted((state["fit"] for state in states), key=lambda fit: fit["began"])
    assert [first["gpus"], second["gpus"]] == ["0", "0"]
    assert (second["began"] < first["ended"]) == together
    assert (first["ended"] - first["began"] < 120) if together else (first["ended"] - first["began"] >= 5)


def until(holds, seconds, otherwise):
    """Waits until `holds()`."""
    deadline = time.time() + seconds
    while not holds():
        assert time.time() < deadline, otherwise
        time.sleep(0.05)


def work(share):
    """Each item says that it has begun, waits for another's beginning, and fails if it is called "broken"."""
    for item in share:
        (item["begun"].parent / f"{item['name']} process").write_text(str(os.getpid()))
        deadline = time.time() + 180
        try:
            item["begun"].touch()
            while not item["after"].exists():
                if time.time() > deadline:
                    raise TimeoutError(f"{item['name']} waited for {item['after'].name} in vain")
                time.sleep(0.05)
        finally:
            (item["begun"].parent / f"{item['name']} waits no more").touch()
        if item["name"] == "broken":
            raise UserError("mend it")
        (item["begun"].parent / f"{item['name']} ended").touch()
        names = [row["name"] for row in share]
        yield {"item": item["name"], "share": names, "threads": os.environ["OMP_NUM_THREADS"]}


def test_parts_of_a_trial_run_side_by_side_and_their_errors_come_as_they_are(tmp_path, is_alive):
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
        # by an interrupt, or with its process
        process, told = int((tmp_path / "long process").read_text()), tmp_path / "long waits no more"
        until(lambda: told.exists() or not is_alive(process), 120, "the error of one part ends the others")
        assert not (tmp_path / "long ended").exists()
    assert subprocess.run(["false"]).returncode == 1, "this process can still read exit codes"


def dying(share):
    """Of two items one process dies at once, the other has its events still to come."""
    for item in share:
        if item["dies"]:
            os.kill(os.getpid(), signal.SIGKILL)
        for number in range(3):
            time.sleep(1.0)
            yield {"event": number}


def test_what_the_others_do_is_not_lost_with_a_part(tmp_path):
    """The process of one is gone; the trial begins it again, when the others have ended."""
    seen = []
    with tuning._ray(TWO_CORES, cpus=1), pytest.raises(PartLost):
        for event in tuning._spread({"cpu": 1}, dying, [{"dies": True}, {"dies": False}]):
            seen.append(event["event"])
    assert seen == [0, 1, 2]


def test_a_part_waits_for_a_node_that_is_not_there_at_the_moment(tmp_path):
    with tuning._ray(TWO_CORES, cpus=1):
        events = tuning._spread({"cpu": 1, "gpu": 1}, dying, [{"dies": False}])

        def ask():
            with contextlib.suppress(BaseException):  # of the end of Ray
                next(events)

        asked = threading.Thread(target=ask, daemon=True)
        asked.start()
        asked.join(5.0)
        assert asked.is_alive()


def deaf(share):
    """Has three events that nobody reads, and hears no interrupt."""
    (item,) = share
    (item["folder"] / "process").write_text(str(os.getpid()))
    for number in range(4):
        yield {"event": number}
    (item["folder"] / "begun").touch()
    deadline = time.time() + 180
    while time.time() < deadline:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(0.05)


def test_a_part_that_has_unread_events_and_hears_nothing_is_ended_by_force(tmp_path, is_alive, monkeypatch):
    monkeypatch.setattr(tuning, "GRACE", 1.0)
    with tuning._ray(TWO_CORES, cpus=1):
        events = tuning._spread({"cpu": 1}, deaf, [{"folder": tmp_path}])
        assert next(events) == {"event": 0}
        until((tmp_path / "begun").exists, 120, "it does not begin")
        process = int((tmp_path / "process").read_text())
        assert is_alive(process)
        events.close()
        until(lambda: not is_alive(process), 60, "it lives on")


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
    # that parts do run at once is shown above: here a busy machine may begin the second when the first has ended
    alone = sorted(experts_in(here / run_id).values(), key=lambda expert: expert["began"])
    assert alone[0]["ended"] <= alone[1]["began"]
    for name in experts:
        files = [place / run_id / "nnunet" / name / "weights.pt" for place in (here, there)]
        weights = [torch.load(file) for file in files]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    tables = [pd.read_parquet(place / run_id / "records.parquet").drop(columns="seconds") for place in (here, there)]
    pd.testing.assert_frame_equal(*tables)


def test_asked_to_stop_while_ray_starts(monkeypatch):
    """Ray's own way with SIGTERM is an exit by that number."""
    import ray

    def ended(**options):
        raise SystemExit(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", ended)
    with pytest.raises(KeyboardInterrupt), tuning._ray(TWO_CORES, cpus=1):
        pass


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
def test_a_killed_driver_leaves_finished_experts_that_are_kept(toy, started, is_alive, tmp_path):
    folder = tmp_path / "suite"
    (spec,) = nnunet_suite(toy, folder)
    run_dir = folder / spec.run_id
    driver = started(
        [sys.executable, "-c", DRIVER, folder, spec.model_dump_json(), "1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    until(lambda: experts_in(run_dir) or driver.poll() is not None, 240, "no expert ends")
    assert driver.poll() is None
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    until(lambda: not any(map(is_alive, below)), 120, "processes of Ray or nnU-Net outlive the driver")
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
def test_ctrl_c_stops_the_worker_and_marks_its_trial(two_priors, started, is_alive):
    folder, (spec, _) = two_priors
    # the worker waits for ever on a splits.json that is a pipe nobody writes to
    (folder / "splits.json").unlink()
    os.mkfifo(folder / "splits.json")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    driver = started(
        [sys.executable, "-c", DRIVER, folder, spec.model_dump_json(), "2"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # tests that run in the background of a shell inherit "ignore SIGINT", and so would the driver
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    began = lambda: run_state(folder / spec.run_id)["state"] == "running"  # noqa: E731
    until(lambda: began() or driver.poll() is not None, 120, "the trial does not begin")
    workers = psutil.Process(driver.pid).children(recursive=True)
    assert workers
    driver.send_signal(signal.SIGINT)
    output = driver.communicate(timeout=60)[0]
    assert output.strip() == "stopped", output
    assert run_state(folder / spec.run_id)["state"] == "interrupted"
    until(lambda: not any(map(is_alive, workers)), 30, "processes of Ray outlive Ctrl-C")
