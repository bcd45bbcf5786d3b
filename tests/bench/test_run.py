"""The driver, with the real location prior: only missing trials run, a folder holds one comparison, one
run at a time.
"""

import io
import json
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from bench import run as driver
from bench.data.dataset import load_dataset
from bench.data.splits import make_splits, split_folders
from bench.errors import UserError
from bench.execute import run_state
from bench.interface import FitSummary, Prediction
from bench.methods import METHODS, MethodEntry
from bench.plan import Request, choose, make_plan
from reports.load import load_suite

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def request_of(squares, tmp_path, monkeypatch):
    """Makes requests for location priors on the squares, in this process, tracked in a store of the test."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def make(**changes):
        values = {
            "suite": "smoke",
            "data": (squares,),
            "methods": ("location_prior",),
            "executor": "local",
            "runs_dir": tmp_path / "runs",
        }
        return Request(**(values | changes))

    return make


@pytest.fixture
def fast(monkeypatch):
    """Leaves out MLflow, whose database takes seconds to make, for tests of something else."""
    from bench import tracking

    monkeypatch.setattr(tracking, "initialize_store", lambda uri, runs_dir: False)


def console():
    return Console(file=io.StringIO(), width=140)


def text_of(out):
    return out.file.getvalue()


class Silent:
    """A method that finds nothing."""

    def fit(self, train, val, run_dir, log):
        return FitSummary(budget="none", train_seconds=0.0)

    def predict(self, samples, log):
        import numpy as np

        for sample in samples:
            for target in sample.targets:
                yield Prediction(sample, target, np.zeros((sample.height, sample.width), bool), 0.01)


class Broken(Silent):
    """A method that cannot be trained."""

    def fit(self, train, val, run_dir, log):
        raise ValueError("no such luck")


def add(monkeypatch, name, method):
    monkeypatch.setitem(
        METHODS, name, MethodEntry(name.title(), lambda spec: method(), "this test", uses_backbone=False)
    )


def test_from_data_to_report_and_only_what_is_missing_again(request_of, tmp_path, monkeypatch):
    out = console()
    assert driver.run(request_of(seeds=(0, 1)), out) == 0
    folder = tmp_path / "runs" / "smoke-squares"
    suite = json.loads((folder / "suite.json").read_text())
    assert suite["phantom"] is False and suite["data"]["squares"].endswith("squares")
    assert len(suite["runs"]) == 2 and suite["methods"] == {"location_prior": METHODS["location_prior"].label}
    for run_id in suite["runs"]:
        assert run_state(folder / run_id)["state"] == "finished"
        assert len(pd.read_parquet(folder / run_id / "records.parquet")) == 4
    assert (folder / "report" / "index.html").is_file()
    shown = text_of(out)
    assert suite["split_hash"] in shown and "2 of 2 trials to run" in shown
    assert str(folder / "report" / "index.html") in shown
    assert shown.index("2 of 2 trials") < shown.index("finished after") < shown.index("index.html")

    before = {run_id: (folder / run_id / "records.parquet").stat().st_mtime_ns for run_id in suite["runs"]}
    out = console()
    assert driver.run(request_of(seeds=(0, 1, 2)), out) == 0
    assert "1 of 3 trials to run" in text_of(out)
    assert before == {run_id: (folder / run_id / "records.parquet").stat().st_mtime_ns for run_id in before}

    from bench import tracking

    client = tracking.client(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    runs = client.search_runs([experiment])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in runs if run not in children]
    assert len(children) == 3 and {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    kept = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"report", "records", "suite.json", "splits.json"} <= kept
    report = {Path(item.path).name for item in client.list_artifacts(parent.info.run_id, "report")}
    assert {"index.html", "claims.csv", "main_table.csv", "dice_vs_size.png"} <= report
    records = {Path(item.path).name for item in client.list_artifacts(parent.info.run_id, "records")}
    assert records == {run.info.run_name for run in children}
    files = {item.path for item in client.list_artifacts(children[0].info.run_id)}
    assert {"records.parquet", "spec.json", "env.json"} <= files


def test_the_runs_of_two_commands_stand_in_one_table(request_of, tmp_path, monkeypatch, fast):
    add(monkeypatch, "silent", Silent)
    assert driver.run(request_of(methods=("silent",)), console()) == 0
    assert driver.run(request_of(), console()) == 0
    suite = json.loads((tmp_path / "runs" / "smoke-squares" / "suite.json").read_text())
    # a method of the suite stands before one from outside
    assert [run_id.split("-")[0] for run_id in suite["runs"]] == ["location_prior", "silent"]


def test_a_suite_names_every_command_that_made_its_runs_and_no_other(request_of, tmp_path, monkeypatch, fast):
    add(monkeypatch, "silent", Silent)
    folder = tmp_path / "runs" / "smoke-squares"

    def after(**changes):
        request = request_of(**changes)
        assert driver.run(request, console()) == 0
        suite = json.loads((folder / "suite.json").read_text())
        assert suite["command"] == request.command == load_suite(folder).commands[-1]
        return [(entry["command"], entry["runs"]) for entry in suite["earlier_commands"]]

    first, second = request_of(methods=("silent",)).command, request_of(seeds=(0, 1)).command
    assert after(methods=("silent",)) == []
    assert after() == [(first, [run.name for run in folder.glob("silent-*")])]
    # the second asked for no run that the third does not ask for
    assert [command for command, _ in after(seeds=(0, 1))] == [first]
    assert [command for command, _ in after(seeds=(1,))] == [first, second]
    assert load_suite(folder).commands[:2] == (first, second)
    assert after(methods=("silent", "location_prior"), seeds=(0, 1)) == []


def test_a_failed_trial_is_told_with_its_traceback_and_the_others_go_on(request_of, tmp_path, monkeypatch, fast):
    add(monkeypatch, "broken", Broken)
    out = console()
    assert driver.run(request_of(methods=("broken", "location_prior")), out) == 1
    folder = tmp_path / "runs" / "smoke-squares"
    states = {path.parent.name.split("-")[0]: run_state(path.parent)["state"] for path in folder.glob("*/status.json")}
    assert states == {"location_prior": "finished", "broken": "failed"}
    (error,) = folder.glob("*/error.txt")
    shown = text_of(out).replace("\n", "")
    assert "ValueError: no such luck" in shown and str(error) in shown
    assert (folder / "report" / "index.html").is_file()
    monkeypatch.delitem(METHODS, "broken")
    add(monkeypatch, "broken", Silent)
    assert driver.run(request_of(methods=("broken", "location_prior")), console()) == 0


def test_ctrl_c_says_how_to_go_on(request_of, monkeypatch, fast, capsys):
    class Interrupted(Silent):
        def fit(self, train, val, run_dir, log):
            raise KeyboardInterrupt

    add(monkeypatch, "interrupted", Interrupted)
    request = request_of(methods=("interrupted",))
    assert driver.run(request, console()) == 130
    assert request.command in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["bench.run.check_folder", "bench.run.write_suite", "reports.build.build_report"])
def test_asked_to_stop_outside_the_trials_it_says_how_to_go_on(number, moment, request_of, monkeypatch, fast, capsys):
    # ignored where the tests run in the background of a shell
    earlier = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    before = signal.getsignal(number)

    def stop(*args, **kwargs):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(moment, stop)
    request = request_of()
    assert driver.run(request, console()) == 130
    assert request.command in capsys.readouterr().err
    assert signal.getsignal(number) == before
    signal.signal(number, earlier)


def test_a_folder_that_another_command_made_meanwhile_is_refused(request_of, tmp_path, monkeypatch, fast):
    assert driver.run(request_of(), console()) == 0
    file = tmp_path / "runs" / "smoke-squares" / "suite.json"
    there = json.dumps(json.loads(file.read_text()) | {"split_hash": "other"})
    file.unlink()
    prepared = driver.prepare

    def and_then(*args):
        plan = prepared(*args)
        file.write_text(there)
        return plan

    monkeypatch.setattr(driver, "prepare", and_then)
    with pytest.raises(UserError, match=r"suite.json has split_hash 'other'"):
        driver.run(request_of(), console())
    assert file.read_text() == there


def test_checkpoints_of_a_trial_that_was_killed_when_all_was_done_go(request_of, tmp_path, fast):
    assert driver.run(request_of(), console()) == 0
    (run_dir,) = (tmp_path / "runs" / "smoke-squares").glob("*-seed*")
    (run_dir / "resume-00000010-0123456789abcdef.pt").write_bytes(b"")
    assert driver.run(request_of(), console()) == 0
    assert not list(run_dir.glob("resume-*"))


@pytest.mark.parametrize("field", ["split_hash", "schema_version", "suite", "profile"])
def test_a_folder_of_another_comparison_is_refused(request_of, tmp_path, fast, field):
    assert driver.run(request_of(), console()) == 0
    file = tmp_path / "runs" / "smoke-squares" / "suite.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: "other"}))
    for act in (driver.run, driver.dry_run):
        with pytest.raises(UserError, match=f"suite.json has {field} 'other'.*--name, or remove"):
            act(request_of(), console())
    assert driver.run(request_of(name="elsewhere"), console()) == 0


def test_a_dry_run_prints_everything_and_writes_nothing(request_of, tmp_path):
    out = console()
    assert driver.dry_run(request_of(methods=None), out) == 0
    shown = text_of(out)
    for word in (
        "squares",
        "split ",
        "4 / 8 / 4",
        "2 / 4 / 2",
        "boltzformer",
        "nnunet",
        "steps x",
        "(20 epochs)",
        "estimate",
    ):
        assert word in shown
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_tells_all_data_problems_at_once(request_of, squares, tmp_path):
    images = sorted((squares / "train").glob("*.png"))
    images[0].unlink()
    images[1].write_bytes(b"no image")
    out = console()
    for act in (driver.dry_run, driver.run):
        assert act(request_of(), out) == 2
        for image in images[:2]:
            assert image.stem in text_of(out).replace("\n", "")
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_of_the_phantom_generates_nothing(request_of, tmp_path):
    out = console()
    assert driver.dry_run(request_of(data=(), methods=None), out) == 0
    assert "to be generated" in text_of(out) and "guess" not in text_of(out)
    assert not (tmp_path / "runs").exists()
    for other in ({"backbones": ("hiera_s",)}, {"changes": ("model.queries=32",)}):
        out = console()
        assert driver.dry_run(request_of(data=(), methods=None, **other), out) == 0
        assert "a guess: costs were measured on a CPU with the laptop profile's models" in text_of(out)


def leaking(squares):
    """The squares with the first training patient in test as well."""
    file = squares / "test.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"][:2]:
        annotation["patient"] = "train-0"
    file.write_text(json.dumps(content))
    return squares


def test_a_split_file_says_which_data_and_sides(request_of, fast, squares, tmp_path):
    with pytest.raises(UserError, match="'train-0' is in train and in test"):
        make_splits([load_dataset(leaking(squares))])
    hashes = set()
    for keep in (False, True):
        file = tmp_path / f"{keep}.json"
        splits = split_folders([squares], keep_leaks=keep)
        splits.save(file)
        out, request = console(), request_of(data=(), splits=file, name=f"keep-{keep}")
        assert driver.dry_run(request, out) == driver.run(request, out) == 0, text_of(out)
        assert splits.hash in text_of(out) and f"--splits {file}" in request.command
        suite = json.loads((tmp_path / "runs" / request.name / "suite.json").read_text())
        assert suite["split_hash"] == splits.hash
        hashes.add(splits.hash)
    assert len(hashes) == 2


def test_a_split_file_that_cannot_be_used_is_one_line(request_of, squares, tmp_path):
    file = tmp_path / "splits.json"
    with pytest.raises(UserError, match=r"splits\.json is missing: write it again with `bench data split`"):
        driver.run(request_of(data=(), splits=file), console())
    file.write_text('{"datasets": {"squares": 3}}')
    with pytest.raises(UserError, match=r"is no splits\.json of this program"):
        driver.run(request_of(data=(), splits=file), console())
    split_folders([squares]).save(file)
    with pytest.raises(UserError, match="names its data sets already: leave --data out"):
        driver.run(request_of(splits=file), console())
    next((squares / "test").glob("*.png")).unlink()
    out = console()
    assert driver.run(request_of(data=(), splits=file), out) == 2
    assert "1 data problem" in text_of(out)


def test_a_problem_of_what_is_not_used_is_shown_and_stops_nothing(request_of, squares):
    mask = next((squares / "train_mask").glob("*.png"))
    mask.with_name("forgotten.png").write_bytes(mask.read_bytes())
    out = console()
    assert driver.dry_run(request_of(), out) == 0
    assert "forgotten.png" in text_of(out) and "none of these stops the run" in text_of(out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "smok"}, "unknown suite 'smok': did you mean 'smoke'"),
        ({"profile": "laptob"}, "unknown profile 'laptob': did you mean 'laptop'"),
        ({"methods": ("botlzformer",)}, "did you mean 'boltzformer'"),
        ({"backbones": ("hiera_xs",)}, "unknown backbone 'hiera_xs': did you mean"),
        ({"data": (Path("no/such/folder"),)}, "no/such/folder"),
        ({"methods": ()}, "no method is left"),
        ({"name": "../elsewhere"}, "cannot be a folder"),
        ({"name": "data"}, "cannot be a folder"),
    ],
)
def test_a_wrong_name_is_one_line_and_nothing_is_written(request_of, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        driver.run(request_of(**changes), console())
    assert not (tmp_path / "runs").exists()


def test_trials_stand_by_seed_in_the_suites_order_with_backbones_only_where_they_are_used(request_of):
    request = request_of(methods=("boltzformer", "location_prior"), backbones=("hiera_xt", "focal_xt"), seeds=(1, 0))
    plan = make_plan(choose(request), request, None)
    assert [(spec.method, spec.backbone, spec.seed) for spec in plan.specs] == [
        ("location_prior", "-", 1),
        ("boltzformer", "hiera_xt", 1),
        ("boltzformer", "focal_xt", 1),
        ("location_prior", "-", 0),
        ("boltzformer", "hiera_xt", 0),
        ("boltzformer", "focal_xt", 0),
    ]
    assert len({spec.run_id for spec in plan.specs}) == 6


def test_an_ablation_is_whole_after_each_seed(request_of):
    request = request_of(methods=("boltzformer",), seeds=(1, 0), ablations=("attention", "temperature"))
    specs = make_plan(choose(request), request, None).specs
    assert [spec.seed for spec in specs] == [1] * (len(specs) // 2) + [0] * (len(specs) // 2)
    first, second = ([spec.variant for spec in specs if spec.seed == seed] for seed in (1, 0))
    assert first == second and first[0] is None and len(set(first)) == len(first) > 3


def test_the_command_of_a_request_asks_for_the_same():
    request = Request("main", (Path("my data"),), "gpu", ("sam", "sam2"), None, (0, 1), "local", "x", Path("/r"))
    words = request.command.split(" --")
    assert words[0] == "bench run" and sorted(words[1:]) == [
        "data 'my data'",
        "executor local",
        "methods sam,sam2",
        "name x",
        "profile gpu",
        "runs-dir /r",
        "seeds 0,1",
        "suite main",
    ]
    assert Request().command == "bench run --suite main"
    weights = Request(weights=("biomedparse=a.pt", "sam3=my file.pt")).command
    assert weights == "bench run --suite main --weights biomedparse=a.pt --weights 'sam3=my file.pt'"
