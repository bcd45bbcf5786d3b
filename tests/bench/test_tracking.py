"""A real MLflow store in a temporary folder: one run per key, no double points, and no harm when it is
away.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import tracking
from bench.errors import UserError
from bench.spec import flatten
from bench.tracking import Tracker, initialize_store, store_uri

ROOT = Path(__file__).resolve().parents[2]


def run_of(uri, key):
    client = tracking.client(uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    (run,) = client.search_runs([experiment], f"tags.bench_key = '{key}'")
    return client, run


def points(client, run, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_parent_and_child_with_params_curves_and_artifacts(store, tmp_path):
    (tmp_path / "spec.json").write_text("{}")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("<p>")
    parent = Tracker(store, "suite a", "main", {"split_hash": "abc"})
    child = Tracker(
        store,
        "trial a",
        "sam-seed0",
        params=flatten({"seed": 0, "recipe": {"steps": 5}}),
        parent=parent.run_id,
    )
    for step in range(1500):
        child.log(step, {"train_loss": step / 4})
    child.artifacts(tmp_path / "spec.json", tmp_path / "report", tmp_path / "is_not_there.pt")
    child.finish("FINISHED")
    client, run = run_of(store, "trial a")
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.data.params == {"seed": "0", "recipe.steps": "5"}
    assert run.info.status == "FINISHED"
    assert sorted(points(client, run, "train_loss")) == [(step, step / 4) for step in range(1500)]
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert files == {"spec.json", "report"}
    assert run_of(store, "suite a")[1].data.tags["split_hash"] == "abc"


def test_a_restarted_trial_goes_on_in_its_run(store):
    first = Tracker(store, "trial b", "b", params={"steps": 1})
    first.log(1, {"val_dice": 0.1})
    first.finish("KILLED")
    second = Tracker(store, "trial b", "b", tags={"git_commit": "1"}, params={"steps": 2})
    assert second.run_id == first.run_id
    second.log(2, {"val_dice": 0.2})
    second.finish("FINISHED")
    client, run = run_of(store, "trial b")
    assert points(client, run, "val_dice") == [(1, 0.1), (2, 0.2)]
    assert run.data.params == {"steps": "1"} and run.data.tags["git_commit"] == "1"


def test_a_trial_whose_files_are_gone_gets_a_new_run(store):
    first = Tracker(store, "trial c", "c")
    second = Tracker(store, "trial c", "c", fresh=True)
    assert second.run_id != first.run_id
    assert run_of(store, "trial c")[1].info.run_id == second.run_id


def test_what_a_killed_process_has_not_sent_of_the_parameters_is_sent(store):
    client = tracking.client(store)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    made = client.create_run(experiment, tags={"bench_key": "trial e"})  # and killed here
    client.log_param(made.info.run_id, "seed", "0")
    again = Tracker(store, "trial e", "e", params={"seed": 0, "steps": 5})
    assert again.run_id == made.info.run_id
    assert run_of(store, "trial e")[1].data.params == {"seed": "0", "steps": "5"}


def test_a_new_run_whose_answer_did_not_arrive_is_not_made_twice(store, monkeypatch, capsys):
    Tracker(store, "trial f", "f")
    from mlflow import MlflowClient

    create = MlflowClient.create_run

    def no_answer(*args, **kwargs):
        create(*args, **kwargs)
        raise OSError("timed out")

    monkeypatch.setattr(MlflowClient, "create_run", no_answer)
    tracker = Tracker(store, "trial f", "f", params={"seed": 0}, fresh=True)
    assert tracker.run_id is None
    monkeypatch.setattr(MlflowClient, "create_run", create)
    tracker.begin_again()
    tracker.log(1, {"train_loss": 1.0})
    tracker.finish("FINISHED")
    _, run = run_of(store, "trial f")
    assert run.info.run_id == tracker.run_id and run.data.params == {"seed": "0"}


def test_the_experiment_may_be_made_by_somebody_else_meanwhile(store, monkeypatch):
    client = tracking.client(store)
    there, looked = client.get_experiment_by_name(tracking.EXPERIMENT), []

    def late(name):
        looked.append(name)
        return there if len(looked) > 1 else None

    monkeypatch.setattr(client, "get_experiment_by_name", late)
    assert tracking._experiment_id(client, None) == there.experiment_id


def test_without_mlflow_nothing_breaks_and_it_is_told_once(capsys):
    tracker = Tracker("http://127.0.0.1:9", "trial", "name")
    for step in range(50):
        tracker.log(step, {"train_loss": 1.0})
        tracker.flush()
    tracker.tag(budget="1")
    tracker.artifacts(Path("nothing"))
    tracker.finish("FINISHED")
    warnings = capsys.readouterr().err.strip().splitlines()
    assert len(warnings) == 1 and "http://127.0.0.1:9 is not reachable" in warnings[0]


@pytest.mark.parametrize("arrived", [False, True])
def test_what_could_not_be_sent_is_caught_up_once_whether_it_had_arrived_or_not(arrived, store, monkeypatch, capsys):
    tracker = Tracker(store, f"trial d {arrived}", "d")
    real = tracker._client.log_batch

    def away(*args, **kwargs):
        if arrived:
            real(*args, **kwargs)
        raise OSError("away")

    monkeypatch.setattr(tracker._client, "log_batch", away)
    tracker.log(1, {"train_loss": 1.0, "norm": 3.0})
    tracker.flush()
    assert tracker.failed
    monkeypatch.setattr(tracker._client, "log_batch", real)
    tracker.begin_again()
    tracker.log(2, {"train_loss": 0.5})
    tracker.catch_up(
        [(1, 5.0, {"train_loss": 1.0, "norm": 3.0}), (2, 6.0, {"train_loss": 0.5}), (3, 7.0, {"norm": 4.0})]
    )
    tracker.finish("FINISHED")
    assert not tracker.failed
    client, run = run_of(store, f"trial d {arrived}")
    assert points(client, run, "train_loss") == [(1, 1.0), (2, 0.5)]
    assert sorted(points(client, run, "norm")) == [(1, 3.0), (3, 4.0)]


def test_a_password_is_neither_taken_from_the_command_line_nor_shown(bench, tmp_path):
    secret = "http://me:s3cret@127.0.0.1:9"
    done = bench("run", "--suite", "smoke", "--tracking-uri", secret, "--runs-dir", tmp_path)
    assert done.returncode == 2 and "set MLFLOW_TRACKING_USERNAME" in done.stderr
    words = ("run", "--suite", "smoke", "--methods", "location_prior", "--executor", "local", "--runs-dir", tmp_path)
    told = bench(*words, MLFLOW_TRACKING_URI=secret)
    assert told.returncode == 0 and "MLflow at http://***@127.0.0.1:9 is not reachable" in told.stderr
    assert "s3cret" not in done.stderr + done.stdout + told.stderr + told.stdout
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size < 2**20]
    assert files and not [file for file in files if b"s3cret" in file.read_bytes()]


@pytest.mark.parametrize("asked", [True, False])
def test_an_address_without_a_scheme_is_told_before_any_work(asked, tmp_path, monkeypatch):
    """MLflow would take it for an unknown kind of store, at the end of every trial."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlflow:5000")
    name = "--tracking-uri" if asked else "MLFLOW_TRACKING_URI"
    with pytest.raises(UserError, match=f"^{name}: 'mlflow:5000' is no address of MLflow: write http://HOST:PORT"):
        store_uri(tmp_path, "mlflow:5000" if asked else None)
    assert store_uri(tmp_path, "http://mlflow:5000") == "http://mlflow:5000"


def test_a_store_that_cannot_be_made_is_a_warning(tmp_path, capsys):
    assert not initialize_store("http://127.0.0.1:9", tmp_path)
    assert "is not reachable" in capsys.readouterr().err


def test_the_environment_names_another_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert store_uri(tmp_path) == "http://127.0.0.1:5000"


WRITER = """
import sys
from pathlib import Path
from bench.tracking import Tracker, initialize_store
uri, runs, key = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
assert initialize_store(uri, runs)
tracker = Tracker(uri, key, key)
for step in range(20):
    tracker.log(step, {"loss": float(step)})
tracker.finish("FINISHED")
"""


def test_two_processes_may_make_the_store_at_once(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = time.time()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, uri, str(tmp_path), f"writer {number}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    output = "".join(writer.communicate(timeout=240)[0] for writer in writers)
    assert [writer.returncode for writer in writers] == [0, 0], output
    assert output == "", f"MLflow talks on the terminal: {output}"
    assert time.time() - start < 240
    for number in range(2):
        client, run = run_of(uri, f"writer {number}")
        assert len(points(client, run, "loss")) == 20


KILLED = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from bench.tracking import initialize_store

@event.listens_for(Engine, "before_cursor_execute")
def die(connection, cursor, statement, *rest):
    if statement.startswith("INSERT INTO _alembic_tmp_experiments"):
        os.kill(os.getpid(), signal.SIGKILL)

initialize_store(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.fault
def test_killed_while_the_store_is_made_the_next_one_makes_it(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED, uri, str(tmp_path)], env=environment, timeout=240)
    assert killed.returncode == -signal.SIGKILL
    assert initialize_store(uri, tmp_path)
    assert Tracker(uri, "trial", "name").run_id


def test_flatten_names_nested_values_by_their_path():
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": "x"}) == {"a.b.c": 1, "a.d": None, "e": "x"}
