"""`bench phrasings`: trained models asked for their test masks in other words."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from bench.data.dataset import load_dataset, load_image, load_mask
from bench.data.geometry import image_to_square, logits_to_original
from bench.errors import UserError
from bench.interface import Sample, Target
from bench.phrasings import TOGETHER, ask_phrasings, reworded
from bench.predict import generator_for, predict_logits
from bench.predict_image import load_segmenter, segmenter_spec
from bench.records import PHRASINGS_FILE, RECORD_COLUMNS


@pytest.fixture
def runs(toy_runs, tmp_path):
    """A copy of the smoke suite's runs on the toy data, every object of which has two phrasings."""
    return shutil.copytree(toy_runs / "runs", tmp_path / "runs")


def test_every_other_phrasing_is_asked_and_scored(runs, bench, toy_runs):
    suite = runs / "toy"
    before = {path: path.read_bytes() for path in suite.glob("*/records.parquet")}
    done = bench("phrasings", "toy", "--runs-dir", runs)
    assert done.returncode == 0, done.stderr
    assert "Prompt robustness" in done.stdout and "asked    3 runs for 8 phrasings each" in done.stdout
    assert "not asked location_prior-seed0-" in done.stdout and "reads no prompt" in done.stdout
    assert {path: path.read_bytes() for path in suite.glob("*/records.parquet")} == before
    (run_dir,) = suite.glob("boltzformer-*")
    records = pd.read_parquet(run_dir / PHRASINGS_FILE)
    assert list(records.columns) == list(RECORD_COLUMNS) and len(records) == 8
    assert set(records["prompt"]) == {"the block", "the dark disc"} and records["tp"].sum() > 0
    # one of them by hand: the model alone, on this prompt alone
    spec = segmenter_spec(run_dir)
    model = load_segmenter(spec, run_dir).model.eval()
    sample = next(s for s in load_dataset(toy_runs / "toy").test if s.image_id == records["image_id"].iloc[0])
    square = image_to_square(load_image(sample.image_file), spec.recipe.image_size)
    for record in records[records["image_id"] == sample.image_id].itertuples():
        generator = generator_for(sample.image_id, record.prompt, spec.seed, next(model.parameters()).device)
        logits = predict_logits(model, square, [record.prompt], spec.recipe.precision, [generator])
        mask = (logits_to_original(logits, sample.height, sample.width)[0] > 0).numpy()
        truth = load_mask(next(t.mask_file for t in sample.targets if t.object == record.object))
        assert abs(int((mask & truth).sum()) - record.tp) <= 2 and record.area_px == truth.sum()
    table = pd.read_csv(suite / "report" / "prompts.csv")
    assert len(table) == 3 and (table["masks"] == 8).all() and (table["phrasings"] == 4).all()

    again = bench("phrasings", "toy", "--runs-dir", runs)
    assert "asked    0 runs for 8 phrasings each, 3 runs had been" in again.stdout


def test_only_what_is_missing_is_asked(runs):
    suite = runs / "toy"
    first = ask_phrasings(suite)
    assert len(first.runs) == 3 and list(first.left_out.values()) == ["reads no prompt, or was not trained here"]
    (sam,) = suite.glob("sam-*")
    records = pd.read_parquet(sam / PHRASINGS_FILE)
    (sam / PHRASINGS_FILE).unlink()
    steps = []
    assert ask_phrasings(suite, lambda done, total: steps.append((done, total))).runs == (sam.name,)
    assert steps[-1] == (4, 4)
    drop = ["seconds"]
    pd.testing.assert_frame_equal(pd.read_parquet(sam / PHRASINGS_FILE).drop(columns=drop), records.drop(columns=drop))


def test_data_with_one_phrasing_and_runs_that_cannot_be_asked(runs, toy_runs):
    suite = runs / "toy"
    for path in suite.glob("*/status.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "interrupted"}))
    with pytest.raises(UserError, match=r"has no run that can be asked: .*sam-[\w-]+ is interrupted; "):
        ask_phrasings(suite)
    (suite / "splits.json").unlink()
    with pytest.raises(UserError, match="has a second phrasing: give its annotation"):
        ask_phrasings(suite)


def test_phrasings_come_in_parts_and_once(tmp_path):
    targets = tuple(Target(f"o{place}", ("a", "b", "c", "b", "a"), tmp_path) for place in range(20))
    sample = Sample("d", "i", "p", tmp_path, 4, 4, targets)
    parts = list(reworded(sample))
    assert max(len(part.targets) for part in parts) <= TOGETHER
    asked = [(target.object, target.prompts) for part in parts for target in part.targets]
    assert asked == [(f"o{place}", (phrase,)) for place in range(20) for phrase in "bc"]
    assert np.array_equal(list(reworded(Sample("d", "i", "p", tmp_path, 4, 4, (Target("o", ("a",), tmp_path),)))), [])
