"""`bench tune` and `bench run --tuned` by the command line: real trainings of two methods, on validation only."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from bench.methods import METHODS, make_spec
from bench.search import in_words, rungs
from bench.train import TrainedSegmenter
from bench.tune import Halving, Stopped, fit_configuration, loss_at, validations
from bench.tuned import read_tuned
from experiments import SUITES
from experiments.profiles import PROFILES

SPACE = ("--space", "lr=1e-5,2e-3,5e-4")
STATED = "3 configurations x 20 steps, ASHA"


def words(*more, data, runs):
    return (*more, "--suite", "smoke", "--data", data, "--runs-dir", runs, "--executor", "local")


@pytest.fixture(scope="module")
def tuned(bench, toy_data):
    """Folder with data and runs: SAM and SEEM tuned on the toy data."""
    data, runs = toy_data / "toy", toy_data / "runs"
    outputs = {}
    for method in ("sam", "seem"):
        done = bench(*words("tune", method, *SPACE, data=data, runs=runs), MLFLOW_TRACKING_URI="http://127.0.0.1:9")
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
        outputs[method] = done.stdout
    return SimpleNamespace(data=data, runs=runs, folder=runs / "smoke-tune-toy", outputs=outputs)


@pytest.fixture(scope="module")
def toy_data(tmp_path_factory, layout):
    """The folder of a data set toy/: bright squares on noise, 5 + 2 patients."""
    rng = np.random.default_rng(0)

    def item(patient):
        image = rng.normal(110, 8, (48, 40))
        top, left = rng.integers(2, (36, 28))
        block = np.zeros((48, 40), bool)
        block[top : top + 8, left : left + 6] = True
        image[block] = 220
        return f"p{patient}-z0_toy", f"p{patient}", image.clip(0, 255).astype(np.uint8), {"block": block}

    folder = tmp_path_factory.mktemp("tune")
    for split, patients in (("train", range(5)), ("test", range(5, 7))):
        layout(folder / "toy", split, [item(patient) for patient in patients])
    return folder


def test_the_result_holds_every_configuration_with_its_curve(tuned):
    found = read_tuned(tuned.folder)["sam", "hiera_xt"]
    assert found.budget.configurations == 3 and found.budget.steps == 20 and found.budget.rungs == (10,)
    assert {trial.configuration["learning_rate"] for trial in found.trials} == {1e-5, 2e-3, 5e-4}
    for trial in found.trials:
        assert [step for step, *_ in trial.curve] == ([10, 20] if trial.outcome == "trained" else [10])
        assert trial.val_loss == min(loss for _, loss, _ in trial.curve)
        history = (tuned.folder / trial.run / "history.jsonl").read_text().splitlines()
        assert [row["val_loss"] for row in map(json.loads, history) if "val_loss" in row] == [
            loss for _, loss, _ in trial.curve
        ]
    lowest = min(found.trials, key=lambda trial: trial.val_loss)
    assert found.best == lowest.configuration and lowest.outcome == "trained"
    assert in_words(found.best) in tuned.outputs["sam"] and STATED in tuned.outputs["sam"]


def test_one_after_the_other_each_configuration_is_stopped_by_those_before_it(tuned):
    for found in read_tuned(tuned.folder).values():
        at_rung = [trial.curve[0][1] for trial in found.trials]
        for i, trial in enumerate(found.trials):
            best_third = np.quantile(at_rung[:i], 1 / 3) if i else math.inf
            assert (trial.outcome == "trained") == (at_rung[i] <= best_third)


def test_no_test_image_is_predicted_and_no_weights_are_left(tuned, bench):
    names = {file.name for file in tuned.folder.rglob("*")}
    assert "history.jsonl" in names
    assert not names & {"records.parquet", "predictions.parquet", "model.pt"}
    refused(bench("report", tuned.folder), "is a search of `bench tune`")


def test_trials_need_no_test_split(tuned, tmp_path):
    data, folder = tmp_path / "toy", tmp_path / "suite"
    shutil.copytree(tuned.data, data)
    for part in ("test", "test_mask"):
        shutil.rmtree(data / part)
    (data / "test.json").unlink()
    folder.mkdir()
    for file in ("samples.json", "search-sam-hiera_xt.json", "suite.json"):
        (folder / file).write_text((tuned.folder / file).read_text().replace(str(tuned.data), str(data)))
    assert "p5-" not in (folder / "samples.json").read_text()
    before = read_tuned(tuned.folder)["sam", "hiera_xt"].trials[0]
    spec = json.loads((tuned.folder / before.run / "spec.json").read_text())
    run_dir = folder / before.run
    fit = fit_configuration(type(make_base()).model_validate(spec), folder, run_dir, None, None)
    assert fit["outcome"] == before.outcome
    assert [list(row) for row in validations(run_dir)] == [list(row) for row in before.curve], "and to the same numbers"


def make_base():
    return make_spec(SUITES["smoke"], PROFILES["smoke"], "sam", "hiera_xt", 0, "0" * 12)


def test_again_nothing_is_trained_and_only_what_is_missing(tuned, bench):
    run = read_tuned(tuned.folder)["sam", "hiera_xt"].trials[-1].run
    kept = {file: file.stat().st_mtime_ns for file in tuned.folder.glob("sam-*/status.json") if file.parent.name != run}
    before = (tuned.folder / "tuned-sam-hiera_xt.json").read_text()
    shutil.rmtree(tuned.folder / run)
    done = bench(
        *words("tune", "sam", *SPACE, data=tuned.data, runs=tuned.runs), MLFLOW_TRACKING_URI="http://127.0.0.1:9"
    )
    assert done.returncode == 0 and "1 of 3 trials to run" in done.stdout
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    assert (tuned.folder / "tuned-sam-hiera_xt.json").read_text() == before


def test_what_was_stopped_is_trained_to_the_end_when_asked(tuned, bench, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(tuned.folder, runs / tuned.folder.name)
    before = {trial.run: trial for trial in read_tuned(tuned.folder)["sam", "hiera_xt"].trials}
    stopped = [run for run, trial in before.items() if trial.outcome == "stopped"]
    assert 0 < len(stopped) < 3
    done = bench(*words("tune", "sam", *SPACE, "--no-stopping", data=tuned.data, runs=runs))
    assert done.returncode == 0 and f"{len(stopped)} of 3 trials to run" in done.stdout, done.stdout + done.stderr
    assert "3 configurations x 20 steps, none stopped" in done.stdout
    found = read_tuned(runs / tuned.folder.name)["sam", "hiera_xt"]
    assert found.budget.rungs == () and {trial.outcome for trial in found.trials} == {"trained"}
    for trial in found.trials:
        old = before[trial.run].curve
        assert trial.steps == 20 and trial.curve[: len(old)] == old  # the same training, longer
    refused(bench(*words("tune", "sam", *SPACE, data=tuned.data, runs=runs)), "another search", "--no-stopping")
    dry = words("run", "--tuned", "--methods", "sam,seem", "--dry-run", data=tuned.data, runs=runs)
    refused(bench(*dry), "none stopped", "ASHA", "tune all with the same")


def test_a_run_uses_what_was_found_and_says_so(tuned, bench):
    command = words("run", "--methods", "sam,location_prior", "--tuned", data=tuned.data, runs=tuned.runs)
    done = bench(*command, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    (run_dir,) = (tuned.runs / "smoke-tuned-toy").glob("sam-*")
    spec = json.loads((run_dir / "spec.json").read_text())
    best = read_tuned(tuned.folder)["sam", "hiera_xt"].best
    assert {name: spec["recipe"][name] for name in best} == best and spec["tuning"] == STATED
    assert json.loads((run_dir / "status.json").read_text())["fit"]["given"]["tuning"] == STATED
    untuned = bench(*words("run", "--name", "smoke-tuned-toy", "--dry-run", data=tuned.data, runs=tuned.runs))
    assert untuned.returncode == 2 and "has tuned True, this run False" in untuned.stderr


def refused(done, *parts):
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and all(part in done.stderr for part in parts), done.stderr


def test_refusals_of_a_tuned_run(tuned, bench, tmp_path, squares):
    def dry(*more, data=tuned.data):
        return bench(*words("run", "--dry-run", *more, data=data, runs=tuned.runs))

    refused(dry("--tuned", "--methods", "sam,sam2"), "nothing for sam2", "bench tune sam2", "--methods")
    refused(dry("--tuned", data=squares), "holds no tuned-*.json", "--tuned-from")
    refused(dry("--tuned-from", tuned.folder, "--methods", "sam", data=squares), "another split_hash")
    refused(dry("--tuned", "--methods", "sam", "--profile", "laptop"), "another profile")
    for name, change in {
        "broken": lambda content: content.pop("best"),
        "wrong": lambda content: content["best"].update(learning_rate=-1),
        "greedy": lambda content: content["best"].update(steps=4000),
        "more": lambda content: content["budget"].update(configurations=12),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        for method in ("sam", "seem"):
            (folder / f"tuned-{method}-hiera_xt.json").write_text(
                (tuned.folder / f"tuned-{method}-hiera_xt.json").read_text()
            )
        file = folder / "tuned-sam-hiera_xt.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
    refused(dry("--tuned-from", tmp_path / "broken", "--methods", "sam"), "tuned-sam-hiera_xt.json", "best")
    refused(dry("--tuned-from", tmp_path / "wrong", "--methods", "sam"), "tuned-sam-hiera_xt.json", "learning_rate")
    refused(dry("--tuned-from", tmp_path / "greedy", "--methods", "sam"), "would change steps")
    refused(dry("--tuned-from", tmp_path / "more", "--methods", "sam,seem"), "12 configurations", "3 configurations")


def test_refusals_of_a_search(tuned, bench):
    def dry(*more):
        return bench(*words("tune", *more, data=tuned.data, runs=tuned.runs))

    refused(dry("nnunet", "--dry-run"), "nnunet", "boltzformer")
    refused(dry("boltzforme", "--dry-run"), "did you mean 'boltzformer'")
    refused(dry("sam,nnunet", "--dry-run"), "nnunet has no share")
    refused(dry(",", "--dry-run"), "no method is named")
    refused(dry("sam", "--trials", "99", "--dry-run"), "--trials 99", "12 configurations")
    refused(dry("sam", "--space", "lr=1e-3"), "another search for sam", "--name")


def test_a_dry_run_writes_nothing_and_tells_the_papers_grid(tuned, bench, tmp_path):
    runs = tmp_path / "runs"
    done = bench(*words("tune", "sam", "--space", "paper", "--dry-run", data=tuned.data, runs=runs))
    assert done.returncode == 0 and not runs.exists()
    assert "learning_rate=2e-05,4e-05,5e-05,0.0001" in done.stdout and "12 of 12 trials" in done.stdout


def test_several_methods_have_the_same_search(tuned, bench):
    """Those of the suite that share the recipe; what is finished is not searched again."""
    done = bench(*words("tune", "all", *SPACE, "--dry-run", data=tuned.data, runs=tuned.runs))
    shared = [name for name in SUITES["smoke"].methods if METHODS[name].uses_backbone]
    assert done.returncode == 0 and f"{3 * (len(shared) - 2)} of {3 * len(shared)} trials" in done.stdout, done.stdout
    done = bench(*words("tune", "seem,sam", *SPACE, data=tuned.data, runs=tuned.runs))
    assert done.returncode == 0 and "0 of 6 trials" in done.stdout, done.stdout
    assert done.stdout.count("best     lr=") == 2


def write_history(run_dir, *losses):
    run_dir.mkdir()
    rows = [{"step": 10 * i, "time": 1.0, "val_loss": loss, "val_dice": 0.5} for i, loss in enumerate(losses, 1)]
    (run_dir / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99, "va')


def test_the_rule_counts_the_lowest_loss_up_to_the_rung(tmp_path):
    write_history(tmp_path / "a", 0.5, 0.7, 0.1)
    write_history(tmp_path / "b", None)
    assert loss_at(tmp_path / "a", 20) == 0.5
    assert loss_at(tmp_path / "b", 10) == math.inf
    assert loss_at(tmp_path / "b", 20) is None and loss_at(tmp_path / "nothing", 10) is None
    others = [tmp_path / name for name in ("a", "b", "nothing")]
    Halving(tmp_path / "better", None, [20], others).metrics(20, val_loss=0.4, val_dice=0.5)
    log = Halving(tmp_path / "worse", None, [20], others)
    log.metrics(10, val_loss=0.6, val_dice=0.5)
    with pytest.raises(Stopped, match="step 20"):
        log.metrics(20, val_loss=0.6, val_dice=0.5)


def test_a_configuration_whose_loss_is_no_number_ends_well(tuned, tmp_path, monkeypatch):
    run = read_tuned(tuned.folder)["sam", "hiera_xt"].trials[0].run
    spec = type(make_base()).model_validate_json((tuned.folder / run / "spec.json").read_text())

    def fit(self, train, val, run_dir, log):
        raise FloatingPointError("the training loss is nan at step 3")

    monkeypatch.setattr(TrainedSegmenter, "fit", fit)
    done = fit_configuration(spec, tuned.folder, tmp_path / "run", None, None)
    assert done["outcome"] == "diverged" and done["budget"] == "the training loss is nan at step 3"


def test_one_that_diverged_is_not_the_best_and_does_not_hide_the_others(tuned, bench, tmp_path, monkeypatch):
    """It would diverge again; and the search of another method, or of this one without it, has its result."""
    runs = tmp_path / "runs"
    shutil.copytree(tuned.runs, runs)
    folder = runs / tuned.folder.name
    before = {method: read_tuned(folder)[method, "hiera_xt"] for method in ("sam", "seem")}
    for file in folder.glob("tuned-*"):
        file.unlink()
    # the best of SAM and all of SEEM
    best = min(before["sam"].trials, key=lambda trial: trial.val_loss)
    for trial in (best, *before["seem"].trials):
        status = folder / trial.run / "status.json"
        content = json.loads(status.read_text())
        content["fit"]["outcome"] = "diverged"
        status.write_text(json.dumps(content))
    done = bench(
        *words("tune", "seem,sam", *SPACE, data=tuned.data, runs=runs), MLFLOW_TRACKING_URI="http://127.0.0.1:9"
    )
    assert done.returncode == 2 and "every configuration of seem diverged" in done.stderr, done.stdout + done.stderr
    found = read_tuned(folder)
    assert set(found) == {("sam", "hiera_xt")}
    assert found["sam", "hiera_xt"].best != best.configuration


def test_tuned_and_untuned_are_different_runs_even_at_equal_values():
    spec = make_base()
    assert spec.model_copy(update={"tuning": STATED}).run_id != spec.run_id


def test_everything_with_a_backbone_can_be_tuned_and_has_a_rung():
    for profile in PROFILES.values():
        for method in METHODS:
            spec = make_spec(SUITES["main"], profile, method, profile.backbones[0], 0, "0" * 12)
            assert (spec.recipe is not None) == METHODS[method].uses_backbone
        assert rungs(profile.recipe)
