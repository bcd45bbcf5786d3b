"""What a run folder has is in MLflow in the end, once, whatever was sent on the way; a real store."""

import json
import shutil

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench import tracking
from bench.data.dataset import load_dataset
from bench.data.splits import make_splits
from bench.execute import execute, run_state
from bench.methods import make_spec
from bench.publish import _test_metrics, publish, publish_rest, tracker_of
from bench.runlog import RunLog
from bench.tracking import Tracker
from experiments import SUITES
from experiments.profiles import PROFILES

AWAY = "http://127.0.0.1:9"


@pytest.fixture
def suite(squares, tmp_path):
    """A suite folder, and the specs of two quick trials."""
    folder = tmp_path / "suite"
    folder.mkdir()
    splits = make_splits([load_dataset(squares)])
    splits.save(folder / "splits.json")
    (folder / "suite.json").write_text(json.dumps({"phantom": False, "data": {"squares": str(squares)}}))
    names = [("location_prior", "-"), ("boltzformer", "hiera_xt")]
    return folder, [make_spec(SUITES["smoke"], PROFILES["smoke"], *name, 0, splits.hash) for name in names]


def mlflow_run(uri, key):
    client = tracking.client(uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    (run,) = client.search_runs([experiment], f"tags.bench_key = '{key}'")
    return client, run


def all_points(client, run):
    """{name: [(step, value), ...]} of everything that MLflow has of a run, points that are there twice too."""
    return {
        name: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


def test_runs_without_mlflow_are_sent_later_and_once(suite, store, curves_in_folder):
    folder, specs = suite
    for spec in specs:
        execute(spec, folder, AWAY)
        assert run_state(folder / spec.run_id)["state"] == "finished"
        assert "in_mlflow" not in run_state(folder / spec.run_id)
    parent = Tracker(store, "suite later", "suite")
    for _ in range(2):
        publish_rest(folder, specs, store, parent.run_id)
    for spec in specs:
        run_dir = folder / spec.run_id
        client, run = mlflow_run(store, f"{spec.hash} suite")
        assert run_state(run_dir)["in_mlflow"] == run.info.run_id
        assert run.info.status == "FINISHED" and run.data.tags["mlflow.parentRunId"] == parent.run_id
        assert run.data.tags["budget"] == run_state(run_dir)["fit"]["budget"]
        sent = all_points(client, run)
        curve = curves_in_folder(run_dir) if (run_dir / "history.jsonl").exists() else {}
        assert {name: sent[name] for name in curve} == curve
        assert len(sent["test_dice"]) == len(sent["train_seconds"]) == 1
        files = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert {"records.parquet", "spec.json", "env.json", "status.json"} <= files


def test_a_run_that_sends_as_it_goes_is_there_as_the_folder_says(suite, store, curves_in_folder):
    folder, (_, spec) = suite
    folder = folder.rename(folder.with_name("as it goes"))
    execute(spec, folder, store)
    client, run = mlflow_run(store, f"{spec.hash} as it goes")
    sent, curve = all_points(client, run), curves_in_folder(folder / spec.run_id)
    assert {name: sent[name] for name in curve} == curve and len(curve) == 5
    assert run_state(folder / spec.run_id)["in_mlflow"] == run.info.run_id


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrived=st.lists(st.booleans(), min_size=12, max_size=12), cuts=st.tuples(st.integers(0, 12), st.integers(0, 12))
)
@example(arrived=[True] * 12, cuts=(10, 9))  # what the first has sent beyond the second is in no file any more
def test_whatever_arrived_before_kills(arrived, cuts, store, curves_in_folder, tmp_path_factory):
    """A trial logs 12 points of which MLflow gets some, is killed twice, and goes on from a checkpoint before it."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    key = f"killed {run_dir.parent.name}"
    for first, last in ((0, cuts[0]), (max(0, cuts[0] - 5), cuts[1]), (max(0, min(cuts) - 3), 12)):
        tracker = Tracker(store, key, "run")
        log = RunLog(run_dir, tracker)
        for step in range(first, last):
            log.metrics(step, train_loss=float(step))
            if not arrived[step]:
                tracker._pending.clear()  # the kill came before they were sent
            tracker.flush()
    (run_dir / "status.json").write_text(json.dumps({"state": "interrupted", "ended": "2026-01-01T00:00:00+00:00"}))
    assert publish(run_dir, tracker)
    client, run = mlflow_run(store, key)
    assert all_points(client, run) == curves_in_folder(run_dir) == {"train_loss": [(s, float(s)) for s in range(12)]}
    assert run.info.status == "KILLED"


def test_metrics_for_mlflow_by_hand(tmp_path):
    """Two data sets, one with a small and a large object; names that MLflow takes."""
    row = {"fp": 0, "fn": 0, "height": 10, "width": 100}
    records = [
        row | {"dataset": "MSD-Lung", "tp": 5, "area_px": 5},
        row | {"dataset": "MSD-Lung", "tp": 10, "fn": 10, "area_px": 20},
        row | {"dataset": "mine (2)", "tp": 0, "fn": 4, "area_px": 4},
    ]
    pd.DataFrame(records).fillna(0).to_parquet(tmp_path / "records.parquet")
    assert _test_metrics(tmp_path / "records.parquet") == pytest.approx(
        {
            "test_dice": (1 + 2 / 3 + 0) / 3,
            "dice/MSD-Lung": (1 + 2 / 3) / 2,
            "dice/mine _2_": 0,
            "dice/small/MSD-Lung": 1,
            "dice/small/mine _2_": 0,
            "dice/large/MSD-Lung": 2 / 3,
        }
    )


def test_two_folders_of_one_name_have_runs_of_their_own(suite, store, tmp_path):
    """As two users have who ask one server for the same suite; each is taken up again."""
    folder, (spec, _) = suite
    (folder / "suite.json").write_text(json.dumps({"id": "a1", "phantom": False, "data": {}}))
    other = shutil.copytree(folder, tmp_path / "other" / "suite")
    (other / "suite.json").write_text(json.dumps({"id": "b2", "phantom": False, "data": {}}))
    for where in (folder, other):
        execute(spec, where, store)
    names = [run_state(where / spec.run_id)["in_mlflow"] for where in (folder, other)]
    assert len(set(names)) == 2
    for where, name in zip((folder, other), names, strict=True):
        assert tracker_of(spec, where, store, None, fresh=False).run_id == name


def test_a_run_whose_mlflow_came_back_at_its_end_is_taken_up_again(suite, store, monkeypatch):
    folder, (spec, _) = suite
    folder = folder.rename(folder.with_name("came back"))
    opened = Tracker._open
    monkeypatch.setattr(Tracker, "_open", lambda self: 1 / 0)
    monkeypatch.setattr("bench.execute.files_left", lambda run_dir: monkeypatch.setattr(Tracker, "_open", opened) or {})
    execute(spec, folder, store)
    status = run_state(folder / spec.run_id)
    assert "fresh" not in status
    assert tracker_of(spec, folder, store, None, fresh=False).run_id == status["in_mlflow"]


def test_a_run_without_mlflow_does_not_take_up_that_of_an_earlier_one(suite, store, monkeypatch):
    """Its folder was removed; MLflow is away, or a kill comes before the trial has opened its run."""
    folder, (spec, _) = suite
    folder = folder.rename(folder.with_name("removed"))
    execute(spec, folder, store)
    first = run_state(folder / spec.run_id)["in_mlflow"]
    shutil.rmtree(folder / spec.run_id)
    with monkeypatch.context() as patch:
        patch.setattr("bench.execute.tracker_of", lambda *args: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            execute(spec, folder, store)
    execute(spec, folder, AWAY)
    assert run_state(folder / spec.run_id)["fresh"]
    publish_rest(folder, [spec], store, None)
    status = run_state(folder / spec.run_id)
    assert status["in_mlflow"] != first and "fresh" not in status
    client, run = mlflow_run(store, f"{spec.hash} removed")
    assert run.info.run_id == status["in_mlflow"] and len(all_points(client, run)["test_dice"]) == 1


def test_what_failed_and_what_another_store_has_is_sent_too(suite, store, curves_in_folder, tmp_path):
    folder, (prior, trained) = suite
    folder = folder.rename(folder.with_name("to be sent"))
    for spec in (prior, trained):
        execute(spec, folder)
    run_dir = folder / trained.run_id
    status = run_state(run_dir)
    failed = {name: status[name] for name in ("started", "ended", "spec_hash")} | {"state": "failed", "error": "NaN"}
    (run_dir / "status.json").write_text(json.dumps(failed))
    second = f"sqlite:///{tmp_path / 'second.db'}"
    assert tracking.initialize_store(second, tmp_path)
    for uri in (store, second):
        publish_rest(folder, (prior, trained), uri, None)
        client, run = mlflow_run(uri, f"{trained.hash} to be sent")
        assert run.info.status == "FAILED" and all_points(client, run) == curves_in_folder(run_dir)
        assert mlflow_run(uri, f"{prior.hash} to be sent")[1].info.status == "FINISHED"
