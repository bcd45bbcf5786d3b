"""`bench run --suite smoke` as a user runs it: every method, from nothing to the report, and again."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from experiments import SUITES

# all but the method that is not run without its published weights
RUN = [method for method in SUITES["smoke"].methods if method != "biomedparse"]


def bench(*arguments, cwd):
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    result = bench("run", "--suite", "smoke", cwd=folder)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder, result


def records_of(folder):
    suite = json.loads((folder / "runs" / "smoke" / "suite.json").read_text())
    files = [folder / "runs" / "smoke" / run / "records.parquet" for run in suite["runs"] if "biomedparse" not in run]
    return suite, [pd.read_parquet(file) for file in files]


def test_it_says_what_it_does_and_where_the_report_is(smoke):
    folder, result = smoke
    for word in ("profile", "smoke", "split", "BoltzFormer", "nnU-Net", "report"):
        assert word in result.stdout
    assert str(folder / "runs" / "smoke" / "report" / "index.html") in result.stdout.replace("\n", "")


def test_every_method_has_the_same_records_on_one_split(smoke):
    suite, frames = records_of(smoke[0])
    assert [frame["method"].iloc[0] for frame in frames] == RUN
    keys = [set(map(tuple, f[["dataset", "object", "image_id", "prompt"]].itertuples(index=False))) for f in frames]
    assert all(key == keys[0] for key in keys)
    assert len(keys[0]) == len(frames[0]) > 0
    assert {h for frame in frames for h in frame["split_hash"]} == {suite["split_hash"]}
    assert set(suite["data"]) == set(frames[0]["dataset"])
    areas = [frame["area_px"].sum() for frame in frames]
    assert len(set(areas)) == 1


def test_the_report_is_whole(smoke):
    report = smoke[0] / "runs" / "smoke" / "report"
    for name in ("main_table", "by_size", "object_sizes"):
        for ending in ("md", "csv") if name == "object_sizes" else ("md", "csv", "tex"):
            assert (report / f"{name}.{ending}").stat().st_size > 0
    for figure in ("dice_vs_size.png", "curves.png", "overlays.png"):
        assert (report / figure).stat().st_size > 5000
    html = (report / "index.html").read_text()
    assert "phantom" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert 'src="http' not in html
    table = pd.read_csv(report / "main_table.csv").filter(regex="^(?!paper)")  # the paper has not all of our rows
    assert len(table) == len(SUITES["smoke"].methods)
    empty = table[table["method"] == "BiomedParse v1"].iloc[0]
    assert empty["average"] == "-" and "no weights: give them with --weights biomedparse=FILE" in html
    rest = table[table["method"] != "BiomedParse v1"]
    assert not (rest == "failed").any(axis=None) and (rest == "-").sum().sum() <= 6


def test_every_trial_is_in_mlflow(smoke):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{smoke[0] / 'runs' / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) - len(children) == 1
    assert {run.data.tags["method"] for run in children} == set(RUN)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.tags["split_hash"] for run in runs}) == 1
    trained = [run for run in children if run.data.tags["method"] in ("boltzformer", "sam", "sam2", "seem")]
    for run in trained:
        assert len(client.get_metric_history(run.info.run_id, "val_dice")) == 2


def test_finished_trials_are_not_run_again(smoke):
    folder, _ = smoke
    suite = json.loads((folder / "runs" / "smoke" / "suite.json").read_text())
    files = [folder / "runs" / "smoke" / run / "records.parquet" for run in suite["runs"] if "biomedparse" not in run]
    before = [file.stat().st_mtime_ns for file in files]
    result = bench("run", "--suite", "smoke", cwd=folder)
    assert result.returncode == 0
    assert [file.stat().st_mtime_ns for file in files] == before


def test_report_alone_writes_the_same_table(smoke):
    folder, _ = smoke
    file = folder / "runs" / "smoke" / "report" / "main_table.csv"
    before = file.read_bytes()
    file.unlink()
    assert bench("report", "smoke", cwd=folder).returncode == 0
    assert file.read_bytes() == before
