"""What load_suite reads, and the one line it says about each broken suite folder."""

import json
import shutil

import pandas as pd
import pytest

from bench.errors import UserError
from bench.records import RECORD_COLUMNS
from reports.aggregate import record_dice
from reports.frame import FRAME_COLUMNS
from reports.load import load_predictions, load_suite


@pytest.fixture
def suite(build, tmp_path):
    return build.suite(tmp_path, patients=2, slices=1, size=24)


def run_folder(suite, method):
    return next(path for path in suite.iterdir() if path.name.startswith(f"{method}-"))


def test_reads_runs_records_and_curves(suite):
    results = load_suite(suite)
    assert [(run.method, run.backbone, run.seed, run.state) for run in results.runs] == [
        ("boltzformer", "hiera_laptop", 0, "finished"),
        ("sam", "hiera_laptop", 0, "finished"),
        ("nnunet", "-", 0, "finished"),
    ]
    assert len(results.records) == 3 * 2 * 4  # runs x images x objects
    assert list(results.records.columns) == list(FRAME_COLUMNS)
    assert results.label("boltzformer", "hiera_laptop") == "BoltzFormer+Hiera-XT"
    assert results.label("nnunet", "-") == "nnU-Net"
    assert results.runs[0].history["train_loss"].notna().sum() == 100  # the line cut short is left out
    assert results.runs[0].fit["parameters"] == 1234567 and results.phantom


def test_predictions_of_asked_images_only(suite):
    run = load_suite(suite).runs[0]
    found = load_predictions(run, ["p1_0"])
    assert set(found["image_id"]) == {"p1_0"} and len(found) == 4


def test_missing_failed_and_running_runs(suite, build):
    shutil.rmtree(run_folder(suite, "sam"))
    build.change(run_folder(suite, "nnunet") / "status.json", state="failed", error="out of memory")
    build.change(run_folder(suite, "boltzformer") / "status.json", state="running")
    results = load_suite(suite)
    assert [run.state for run in results.runs] == ["running", "missing", "failed"]
    assert results.runs[1].method == "sam" and results.runs[1].backbone == "hiera_laptop"
    assert results.runs[2].error == "out of memory"
    assert results.records.empty and list(results.records.columns) == list(FRAME_COLUMNS)


def break_split(suite, build):
    build.change(run_folder(suite, "sam") / "spec.json", split_hash="other")
    return "spec.json has split other"


def break_schema(suite, build):
    build.change(suite / "suite.json", schema_version=99)
    return "suite.json has schema version 99"


def break_parquet(suite, build):
    path = run_folder(suite, "sam") / "records.parquet"
    path.write_bytes(path.read_bytes()[:200])
    return "records.parquet cannot be read"


def lose_records(suite, build):
    (run_folder(suite, "sam") / "records.parquet").unlink()
    return "records.parquet is missing"


def change_records(column, value, text):
    def change(suite, build):
        path = run_folder(suite, "sam") / "records.parquet"
        frame = pd.read_parquet(path)
        if value is None:
            frame = frame.drop(columns=column)
        else:
            frame.loc[1, column] = value
        frame.to_parquet(path)
        return text

    return change


def break_spec(suite, build):
    build.change(run_folder(suite, "sam") / "spec.json", seed="x")
    return "spec.json is not a run's spec: it has an unusable seed"


def break_json(suite, build):
    (run_folder(suite, "sam") / "status.json").write_text('{"state":')
    return "status.json cannot be read"


def break_state(suite, build):
    build.change(run_folder(suite, "sam") / "status.json", state="done")
    return "status.json has the unknown state 'done'"


def break_fit(suite, build):
    build.change(run_folder(suite, "sam") / "status.json", fit=True)
    return "status.json has an unusable 'fit'"


def lose_key(suite, build):
    content = json.loads((suite / "suite.json").read_text())
    del content["split_hash"]
    (suite / "suite.json").write_text(json.dumps(content))
    return "suite.json has no 'split_hash'"


def name_unknown_run(suite, build):
    build.change(suite / "suite.json", runs=["other-seed0-0123456789"])
    return "names none of its methods"


@pytest.mark.parametrize(
    "damage",
    [
        break_split,
        break_schema,
        break_parquet,
        lose_records,
        change_records("split_hash", "other", "records.parquet has split_hash other"),
        change_records("schema_version", 0, "records.parquet has schema_version 0"),
        change_records("seed", 5, "records.parquet has seed 5"),
        change_records("tp", None, "records.parquet lacks the columns tp"),
        break_spec,
        break_json,
        break_state,
        break_fit,
        lose_key,
        name_unknown_run,
    ],
)
def test_broken_suite_is_one_clear_line(suite, build, damage):
    text = damage(suite, build)
    with pytest.raises(UserError) as error:
        load_suite(suite)
    message = str(error.value)
    assert text in message and "\n" not in message
    assert "run the suite again" in message


def test_suites_of_schema_1_are_read_as_they_were(suite, build):
    """Version 1 had no `dice`, and plain integers for counts."""
    now = load_suite(suite).records
    for path in suite.glob("*/records.parquet"):
        old = pd.read_parquet(path).drop(columns="dice").assign(schema_version=1)
        old.astype(dict.fromkeys(("tp", "fp", "fn"), "int64")).to_parquet(path)
    build.change(suite / "suite.json", schema_version=1)
    pd.testing.assert_frame_equal(load_suite(suite).records, now)


def test_only_a_published_row_may_have_no_counts(suite, build):
    folder = run_folder(suite, "nnunet")
    records = pd.read_parquet(folder / "records.parquet")
    records.assign(tp=None, fp=None, fn=None, dice=0.25).astype(RECORD_COLUMNS).to_parquet(folder / "records.parquet")
    with pytest.raises(UserError, match="has empty values in tp, fp, fn"):
        load_suite(suite)
    build.change(folder / "spec.json", origin={"kind": "published", "source": "x", "sha256": "0", "column": "dice"})
    found = load_suite(suite).records
    found = found[found["method"] == "nnunet"]
    assert found[["tp", "fp", "fn"]].isna().all(axis=None) and set(record_dice(found)) == {25.0}


def test_a_folder_that_is_no_suite(tmp_path):
    with pytest.raises(UserError, match=r"no suite\.json"):
        load_suite(tmp_path)
