from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.data.augment import View, view_image, view_mask
from bench.data.cache import Draw, dataset_weights, decode, evaluation_batches, make_batch, training_batches
from bench.data.dataset import load_dataset, load_image, load_mask
from bench.data.geometry import image_to_square, mask_to_square
from bench.errors import UserError
from bench.spec import Recipe

RECIPE = Recipe(image_size=32, steps=3, batch_images=5, prompts_per_image=1, learning_rate=1e-3, augment=False)


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.masks, b.masks)
        assert torch.equal(a.image_index, b.image_index)
        assert a.prompts == b.prompts


@pytest.mark.parametrize("size", [32, 30])  # a multiple of eight, and none
def test_decoded_batches_hold_what_the_files_hold(size, toy, tmp_path):
    samples = load_dataset(toy).train
    data = decode(samples, size, tmp_path / "cache" / "a")
    seen = []
    for batch, of in evaluation_batches(data, 4):
        seen += of
        for image, sample in zip(batch.images, of, strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0), image_to_square(load_image(sample.image_file), size))
        targets = [t for sample in of for t in sample.targets]
        assert batch.prompts == [t.prompts[0] for t in targets]
        assert [of[i] for i in batch.image_index] == [s for s in of for _ in s.targets]
        for mask, target in zip(batch.masks, targets, strict=True):
            np.testing.assert_array_equal(mask.numpy() > 0, mask_to_square(load_mask(target.mask_file), size))
    assert tuple(seen) == samples


def test_pngs_are_decoded_once(toy, tmp_path):
    samples = load_dataset(toy).train
    decode(samples, 32, tmp_path / "a")
    (toy / "train" / "p0-z0_toy.png").unlink()
    assert len(decode(samples, 32, tmp_path / "a").images) == len(samples)


def test_another_machine_that_was_faster_is_no_error(toy, tmp_path, monkeypatch):
    """Where locks hold on one machine only, both decode, each for itself, and the first one's stays."""
    samples = load_dataset(toy).train
    expected = decode(samples, 32, tmp_path / "expected").images.copy()
    rename = Path.rename

    def late(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        monkeypatch.setattr("socket.gethostname", lambda: "another")
        monkeypatch.setattr("bench.data.cache.lock_file", lambda handle: None)
        decode(samples, 32, tmp_path / "a")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert np.array_equal(decode(samples, 32, tmp_path / "a").images, expected)
    assert sorted(path.name for path in tmp_path.glob("a*")) == ["a", "a.lock"]


def test_an_unreadable_image_is_named_and_leaves_no_cache(toy, tmp_path):
    samples = load_dataset(toy).train
    broken = toy / "train" / "p3-z0_toy.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    with pytest.raises(UserError, match=r"p3-z0_toy\.png"):
        decode(samples, 32, tmp_path / "a")
    broken.write_bytes(content)
    assert len(decode(samples, 32, tmp_path / "a").images) == len(samples)


def test_training_batches_repeat_by_seed_and_vary_the_phrase(toy, tmp_path):
    data = decode(load_dataset(toy).train, 32, tmp_path / "a")
    first, again, other = (list(islice(training_batches(data, RECIPE, seed), 20)) for seed in (0, 0, 1))
    assert_same(first, again)
    assert any(a.prompts != b.prompts for a, b in zip(first, other, strict=True))
    assert {len(b.prompts) for b in first} == {5}
    assert {p for b in first for p in b.prompts} == {
        "block in toy image",
        "the block",
        "dark disc in toy image",
        "the dark disc",
    }


def test_batches_are_the_same_bit_for_bit_under_any_number_of_workers(toy, tmp_path):
    data = decode(load_dataset(toy).train, 64, tmp_path / "a")
    recipe = RECIPE.model_copy(update={"augment": True, "prompts_per_image": 2})
    none, *some = (list(islice(training_batches(data, recipe, 0, workers), 12)) for workers in (0, 1, 2, 3))
    for batches in some:
        assert_same(batches, none)
    assert any(not torch.equal(a.images, b.images) for a, b in pairwise(none))


def test_a_batch_is_the_callers_own(toy, tmp_path):
    """What the workers write next is not what was handed out."""
    data = decode(load_dataset(toy).train, 32, tmp_path / "a")
    batches = training_batches(data, RECIPE, 0, workers=2)
    first = next(batches)
    kept = first.images.clone()
    for _ in range(5):
        next(batches)
    assert torch.equal(first.images, kept)


def test_augmentation_changes_what_is_seen_and_not_what_is_drawn(toy, tmp_path):
    data = decode(load_dataset(toy).train, 32, tmp_path / "a")
    plain, augmented = (
        list(islice(training_batches(data, RECIPE.model_copy(update={"augment": on}), 0), 10)) for on in (False, True)
    )
    assert [b.prompts for b in plain] == [b.prompts for b in augmented]
    images, seen = (torch.cat([b.images for b in batches]) for batches in (plain, augmented))
    assert 0.2 < (images != seen).flatten(1).any(1).float().mean() < 0.8


def test_a_view_is_taken_of_the_image_and_of_its_masks(toy, tmp_path):
    data = decode(load_dataset(toy).train, 32, tmp_path / "a")
    view = View(top=-2, left=3, side=30, turns=1)
    draw = Draw(row=4, targets=[1, 0], phrases=["disc", "block"])
    plain, seen = make_batch(data, [draw]), make_batch(data, [replace(draw, view=view)])
    image = np.empty((32, 32, 3), np.uint8)
    view_image(plain.images[0].permute(1, 2, 0).numpy(), view, image)
    np.testing.assert_array_equal(seen.images[0].permute(1, 2, 0), image)
    for mask, whole in zip(seen.masks, plain.masks, strict=True):
        view_mask(whole.numpy(), view, out := np.empty((32, 32), np.uint8))
        np.testing.assert_array_equal(mask, out)


@pytest.mark.parametrize(
    ("rule", "expected"), [("proportional", [0.9, 0.1]), ("square-root", [0.75, 0.25]), ("uniform", [0.5, 0.5])]
)
def test_small_data_sets_are_drawn_by_the_stated_rule(rule, expected):
    np.testing.assert_allclose(dataset_weights([900, 100], rule), expected)
