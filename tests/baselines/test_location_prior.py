"""The location prior against a slow obvious implementation."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from baselines.location_prior import GRID, THRESHOLDS, LocationPrior, best_threshold, build, mean_mask, resize
from bench.errors import UserError
from bench.interface import Sample, Target
from bench.spec import RunSpec

SPEC = RunSpec(suite="test", profile="test", method="location_prior", backbone="-", seed=0, split_hash="x")


class Silent:
    def progress(self, phase, step, total):
        pass

    def metrics(self, step, **values):
        pass


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def blob(height, width, top, left, size=0.25):
    """A rectangle at a place given in fractions of the image."""
    mask = np.zeros((height, width), bool)
    mask[round(top * height) : round((top + size) * height), round(left * width) : round((left + size) * width)] = True
    return mask


def make_sample(folder: Path, image_id: str, masks: dict[str, np.ndarray], dataset="set") -> Sample:
    folder.mkdir(parents=True, exist_ok=True)
    targets = []
    for name, mask in masks.items():
        file = folder / f"{image_id}_{name}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(file)
        targets.append(Target(name, (name,), file))
    height, width = next(iter(masks.values())).shape
    # the image file is never written: a prior that opened it would fail
    return Sample(dataset, image_id, f"p{image_id}", folder / f"{image_id}.png", height, width, tuple(targets))


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for number, (height, width) in enumerate([(128, 128), (64, 96), (200, 120), (128, 128), (150, 150), (90, 64)]):
        shift = rng.uniform(-0.1, 0.1, 4)
        left = blob(height, width, 0.4 + shift[0], 0.15 + shift[1])
        right = blob(height, width, 0.4 + shift[2], 0.6 + shift[3])
        made.append(make_sample(tmp_path / "data", str(number), {"left": left, "right": right}))
    return made


def test_predicts_each_object_at_its_place_and_original_size(samples, tmp_path):
    method = build(SPEC)
    summary = method.fit(samples[:3], samples[3:5], tmp_path, Silent())
    predictions = list(method.predict(samples[5:], Silent()))
    assert [p.target.object for p in predictions] == ["left", "right"]
    for prediction in predictions:
        assert prediction.mask.shape == (90, 64) and prediction.mask.dtype == bool
        truth = np.asarray(Image.open(prediction.target.mask_file)) > 0
        assert dice(prediction.mask, truth) > 0.3
        columns = np.flatnonzero(prediction.mask.any(axis=0))
        assert (columns.mean() < 32) == (prediction.target.object == "left")
    assert 0 < summary.best_val_dice < 1 and summary.parameters == 0


def test_validation_dice_is_that_of_its_predictions(samples, tmp_path):
    method = build(SPEC)
    summary = method.fit(samples[:3], samples[3:], tmp_path, Silent())
    scores = {"left": [], "right": []}
    for prediction in method.predict(samples[3:], Silent()):
        truth = np.asarray(Image.open(prediction.target.mask_file)) > 0
        scores[prediction.target.object].append(dice(prediction.mask, truth))
    assert summary.best_val_dice == pytest.approx(np.mean([np.mean(values) for values in scores.values()]))


def test_loads_in_a_new_object_and_agrees(samples, tmp_path):
    method = build(SPEC)
    method.fit(samples[:3], samples[3:5], tmp_path, Silent())
    again = LocationPrior()
    again.load(tmp_path)
    for one, two in zip(method.predict(samples, Silent()), again.predict(samples, Silent()), strict=True):
        np.testing.assert_array_equal(one.mask, two.mask)
    assert not list(tmp_path.glob("*.tmp"))


def test_unseen_object_is_empty_and_other_data_sets_do_not_lend(samples, tmp_path):
    method = build(SPEC)
    method.fit(samples[:3], samples[3:5], tmp_path, Silent())
    other = make_sample(tmp_path / "other", "0", {"left": blob(40, 50, 0.4, 0.15)}, dataset="other")
    (prediction,) = method.predict([other], Silent())
    assert prediction.mask.shape == (40, 50) and not prediction.mask.any()


def test_load_without_a_fit_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"location_prior\.npz"):
        LocationPrior().load(tmp_path)


def test_object_without_validation_masks_uses_the_training_ones(samples, tmp_path):
    method = build(SPEC)
    summary = method.fit(samples[:3], [], tmp_path, Silent())
    assert summary.best_val_dice is None
    predictions = list(method.predict(samples[:1], Silent()))
    assert all(prediction.mask.any() for prediction in predictions)


def test_mean_mask_is_the_plain_mean_on_the_grid():
    rng = np.random.default_rng(1)
    masks = [rng.random((GRID, GRID)) < 0.3 for _ in range(5)]
    np.testing.assert_allclose(mean_mask(masks), np.mean(masks, axis=0), atol=1e-6)
    # half the size: each cell of 2 x 2 pixels has one value
    coarse = rng.random((GRID // 2, GRID // 2)) < 0.3
    fine = np.kron(coarse, np.ones((4, 4))).astype(bool)
    assert abs(mean_mask([coarse]).mean() - mean_mask([fine]).mean()) < 0.01


@given(
    hnp.arrays(np.float32, (GRID, GRID), elements=st.floats(0, 1, width=32), fill=st.just(0.0)),
    hnp.arrays(bool, (20, 31), elements=st.booleans(), fill=st.just(False)),
    hnp.arrays(bool, (17, 9), elements=st.booleans(), fill=st.just(True)),
)
def test_best_threshold_is_the_best_of_all_tried_one_by_one(prior, first, second):
    prior[0, 0], first[0, 0] = 1, True
    found, found_dice = best_threshold(prior, [first, second])
    candidates = [(k / THRESHOLDS) * float(prior.max()) for k in range(1, THRESHOLDS + 1)]

    def score(threshold):
        scores = []
        for mask in (first, second):
            predicted = resize(prior, *mask.shape) >= threshold
            hits = sum(1 for y in range(mask.shape[0]) for x in range(mask.shape[1]) if predicted[y, x] and mask[y, x])
            scores.append(2 * hits / max(predicted.sum() + mask.sum(), 1))
        return np.mean(scores)

    scores = [score(threshold) for threshold in candidates[::7]]
    assert found_dice == pytest.approx(score(found))
    assert found_dice >= max(scores) - 1e-12
