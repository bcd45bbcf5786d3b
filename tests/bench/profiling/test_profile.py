"""`bench profile` as a user runs it."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from bench import cli, tracking
from bench.errors import UserError
from bench.profiling import attention
from bench.profiling.measure import Pace
from bench.profiling.report import COLUMNS


def profile(*words, **environment):
    result = CliRunner().invoke(cli.app, ["profile", *map(str, words)], env={"COLUMNS": "160"} | environment)
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(attention, "QUICK_SIDE", 16)
    monkeypatch.setattr(attention, "QUICK_PACE", Pace(1, 1, 0))


def test_quick_attention_writes_its_files_and_an_mlflow_run(small, tmp_path):
    out, runs = tmp_path / "out", tmp_path / "runs"
    shown = profile("attention", "--quick", "--threads", 1, "--out", out, "--runs-dir", runs, MLFLOW_TRACKING_URI="")
    assert str(out / "profile.csv") in shown and "speedup" in shown
    frame = pd.read_csv(out / "profile.csv")
    assert tuple(frame.columns) == COLUMNS and len(frame) > 20
    assert set(frame["path"]) == {"plain", "projected", "absorbed", "gathered", "auto"}
    assert set(frame["phase"]) == {"forward", "forward+backward"}
    assert (frame.loc[frame["path"] == "plain", "speedup"] == 1).all() and frame["speedup"].notna().all()
    assert json.loads((out / "env.json").read_text())["versions"]["torch"]
    assert (out / "profile.png").read_bytes().startswith(b"\x89PNG")
    assert {file.name for file in out.iterdir()} == {"profile.csv", "profile.png", "env.json"}

    client = tracking.client(tracking.store_uri(runs))
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    (run,) = client.search_runs([experiment], "tags.kind = 'profile'")
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"profile.csv", "profile.png", "env.json"}
    assert run.info.status == "FINISHED" and run.data.params["scopes"] == "attention"


def test_what_was_measured_before_ctrl_c_is_kept_without_mlflow_too(small, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    cases = attention.cases(True, (1,))
    stop = attention.Case("stop", 1.0, interrupted)
    monkeypatch.setattr(attention, "cases", lambda quick, threads: [cases[0], stop])
    words = ["profile", "attention", "--quick", "--runs-dir", str(tmp_path)]
    result = CliRunner().invoke(cli.app, words, env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    assert result.exit_code == 130
    assert set(pd.read_csv(tmp_path / "profile" / "profile.csv")["phase"]) == {"forward"}


@pytest.mark.parametrize(
    ("threads", "message"), [("0", "give 1 to"), ("4096", "give 1 to"), ("two", "is no list of whole numbers")]
)
def test_threads_that_cannot_be(tmp_path, threads, message):
    with pytest.raises(UserError, match=message):
        profile("attention", "--quick", "--threads", threads, "--runs-dir", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_quick_as_it_is(tmp_path):
    shown = profile("--quick", "--runs-dir", tmp_path)
    frame = pd.read_csv(tmp_path / "profile" / "profile.csv")
    assert set(frame["scope"]) == {"attention", "decoder", "model", "harness"}
    assert {"boltzformer", "seem", "full", "sam", "sam2"} <= set(frame["method"])
    assert "bars" in shown
