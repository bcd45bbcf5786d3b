"""One trial: records that agree with a slow count, the resume policy, what a failing method leaves behind."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench import execute as execution
from bench.execute import execute, is_finished, mark_interrupted, run_state
from bench.interface import FitSummary, Prediction
from bench.methods import METHODS, MethodEntry
from bench.records import RECORD_COLUMNS, decode_mask
from bench.spec import RunSpec


class Shifted:
    """Answers with the truth moved down by one row; `spoil` may change the list of its predictions."""

    fits = 0

    def __init__(self, spoil=lambda predictions: predictions):
        self.spoil = spoil

    def fit(self, train, val, run_dir, log):
        type(self).fits += 1
        log.metrics(1, val_dice=0.5)
        print("a library that chatters")
        return FitSummary(budget="none", train_seconds=0.25, parameters=3, best_val_dice=0.5)

    def predict(self, samples, log):
        predictions = [
            Prediction(sample, target, np.roll(truth(target.mask_file), 1, axis=0), 0.125)
            for sample in samples
            for target in sample.targets
        ]
        yield from self.spoil(predictions)


def truth(file):
    return np.array(Image.open(file).convert("L")) > 127


@pytest.fixture
def suite(split_squares):
    """A suite folder with splits, and a spec for it."""
    folder, splits = split_squares
    return folder, RunSpec(
        suite="smoke", profile="smoke", method="shifted", backbone="-", seed=3, split_hash=splits.hash
    )


@pytest.fixture
def use(monkeypatch):
    """Puts a method under the name "shifted"."""

    def put(method):
        monkeypatch.setitem(METHODS, "shifted", MethodEntry("Shifted", lambda spec: method, "this test"))

    return put


def test_records_and_predictions_agree_with_a_pixel_by_pixel_count(suite, use, squares, capsys):
    folder, spec = suite
    use(Shifted())
    assert execute(spec, folder) == "finished"
    run_dir = folder / spec.run_id
    records = pd.read_parquet(run_dir / "records.parquet")
    predictions = pd.read_parquet(run_dir / "predictions.parquet")
    assert list(records.columns) == list(RECORD_COLUMNS)
    assert len(records) == len(predictions) == 4
    assert set(records["prompt"]) == {"large square in toy image", "dot in toy image"}
    rows = zip(records.to_dict("records"), predictions.to_dict("records"), strict=True)
    for record, prediction in rows:
        true = truth(squares / prediction["mask_file"])
        mask = decode_mask(prediction["runs"], prediction["height"], prediction["width"])
        assert np.array_equal(mask, np.roll(true, 1, axis=0))
        counts = {"tp": 0, "fp": 0, "fn": 0}
        for row in range(20):
            for column in range(30):
                if mask[row, column] or true[row, column]:
                    name = "tp" if mask[row, column] and true[row, column] else "fp"
                    counts["fn" if name == "fp" and true[row, column] else name] += 1
        assert {name: record[name] for name in counts} == counts
        assert record["area_px"] == true.sum() and (record["height"], record["width"]) == (20, 30)
        assert (squares / prediction["image_file"]).is_file()
        assert (record["seed"], record["spec_hash"], record["split_hash"]) == (3, spec.hash, spec.split_hash)
        assert record["patient"] == record["image_id"].split("-")[0].replace("test", "test-")
    status = run_state(run_dir)
    assert status["state"] == "finished" and status["error"] is None
    assert FitSummary(**status["fit"]).parameters == 3
    assert RunSpec.model_validate_json((run_dir / "spec.json").read_text()) == spec
    environment = json.loads((run_dir / "env.json").read_text())
    assert environment["seed"] == 3 and environment["versions"]["torch"]
    assert capsys.readouterr().out == ""
    assert "a library that chatters" in (run_dir / "output.log").read_text()


def test_a_finished_trial_is_not_run_again_unless_its_records_are_broken(suite, use):
    folder, spec = suite
    use(Shifted())
    run_dir = folder / spec.run_id
    before = Shifted.fits
    assert execute(spec, folder) == "finished"
    assert execute(spec, folder) == "skipped" and is_finished(spec, run_dir)
    assert Shifted.fits == before + 1
    whole = (run_dir / "records.parquet").read_bytes()
    for damage in (whole[: len(whole) // 2], b"", None):
        if damage is None:
            (run_dir / "records.parquet").unlink()
        else:
            (run_dir / "records.parquet").write_bytes(damage)
        assert not is_finished(spec, run_dir)
        assert execute(spec, folder) == "finished"
    assert Shifted.fits == before + 4
    for state in ("running", "failed", "interrupted"):
        (run_dir / "status.json").write_text(json.dumps(run_state(run_dir) | {"state": state}))
        assert execute(spec, folder) == "finished"
    (run_dir / "status.json").write_text("{")
    assert execute(spec, folder) == "finished"


def test_a_trial_of_record_schema_1_is_still_finished(suite, use):
    folder, spec = suite
    use(Shifted())
    execute(spec, folder)
    path = folder / spec.run_id / "records.parquet"
    pd.read_parquet(path).drop(columns="dice").assign(schema_version=1).to_parquet(path)
    assert is_finished(spec, path.parent)
    pd.read_parquet(path).assign(schema_version=99).to_parquet(path)
    assert not is_finished(spec, path.parent)


def drop_one(predictions):
    return predictions[:-1]


def repeat_one(predictions):
    return [*predictions, predictions[0]]


def turn(predictions):
    return [dataclasses.replace(p, mask=p.mask.T) for p in predictions]


def as_integers(predictions):
    return [dataclasses.replace(p, mask=p.mask.astype(np.uint8)) for p in predictions]


def of_training(predictions):
    sample = dataclasses.replace(predictions[0].sample, image_id="elsewhere")
    return [*predictions, dataclasses.replace(predictions[0], sample=sample)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_one, "left out 1 test targets, first squares / test1-z0_CT_chest / dot"),
        (repeat_one, "predicted squares / test0-z0_CT_chest / large square twice"),
        (turn, r"\(30, 20\), not bool \(20, 30\)"),
        (as_integers, "uint8"),
        (of_training, "elsewhere / large square, which is not in the test split"),
        (lambda predictions: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_method_that_errs_fails_its_trial_and_nothing_else(suite, use, spoil, message):
    folder, spec = suite
    use(Shifted(spoil))
    assert execute(spec, folder) == "failed"
    run_dir = folder / spec.run_id
    assert not (run_dir / "records.parquet").exists()
    status = run_state(run_dir)
    assert status["state"] == "failed" and "\n" not in status["error"]
    assert re.search(message, status["error"])
    assert "Traceback" in (run_dir / "error.txt").read_text()
    use(Shifted())
    assert execute(spec, folder) == "finished"
    assert not (run_dir / "error.txt").exists()


def test_ctrl_c_is_passed_on_and_marked(suite, use):
    folder, spec = suite

    def interrupt(predictions):
        raise KeyboardInterrupt

    use(Shifted(interrupt))
    with pytest.raises(KeyboardInterrupt):
        execute(spec, folder)
    assert run_state(folder / spec.run_id)["state"] == "interrupted"


def test_only_a_run_that_nobody_runs_is_marked_interrupted(tmp_path):
    for state, then in (("running", "interrupted"), ("finished", "finished"), ("failed", "failed")):
        (tmp_path / "status.json").write_text(json.dumps({"state": state}))
        mark_interrupted(tmp_path)
        assert run_state(tmp_path)["state"] == then
    mark_interrupted(tmp_path / "nowhere")
    assert run_state(tmp_path / "nowhere")["state"] == "missing"


def test_a_run_of_another_split_is_refused(suite, use):
    folder, spec = suite
    use(Shifted())
    other = spec.model_copy(update={"split_hash": "0" * 12})
    assert execute(other, folder) == "failed"
    assert "splits.json has split" in run_state(folder / other.run_id)["error"]


def test_two_runs_of_a_seed_draw_the_same_numbers(suite, use):
    folder, spec = suite
    drawn = []

    class Drawing(Shifted):
        def fit(self, train, val, run_dir, log):
            import random

            import torch

            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
            return super().fit(train, val, run_dir, log)

    use(Drawing())
    for seed in (3, 3, 4):
        this = spec.model_copy(update={"seed": seed})
        (folder / this.run_id / "status.json").unlink(missing_ok=True)
        assert execution.execute(this, folder) == "finished"
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])
