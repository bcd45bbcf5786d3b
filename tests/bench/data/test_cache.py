from itertools import islice

import numpy as np
import pytest
import torch

from bench.data.cache import dataset_weights, decode, evaluation_batches, training_batches
from bench.data.dataset import load_dataset, load_image, load_mask
from bench.data.geometry import image_to_square, mask_to_square
from bench.spec import Recipe

RECIPE = Recipe(image_size=32, steps=3, batch_images=5, prompts_per_image=1, learning_rate=1e-3, augment=False)


def test_decoded_batches_hold_what_the_files_hold(toy, tmp_path):
    samples = load_dataset(toy).train
    data = decode(samples, 32, tmp_path / "cache" / "a")
    seen = []
    for batch, of in evaluation_batches(data, 4):
        seen += of
        for image, sample in zip(batch.images, of, strict=True):
            np.testing.assert_array_equal(
                image.permute(1, 2, 0), image_to_square(load_image(sample.image_file), 32).astype(np.float32)
            )
        targets = [t for sample in of for t in sample.targets]
        assert batch.prompts == [t.prompts[0] for t in targets]
        assert [of[i] for i in batch.image_index] == [s for s in of for _ in s.targets]
        for mask, target in zip(batch.masks, targets, strict=True):
            np.testing.assert_array_equal(mask.numpy() > 0, mask_to_square(load_mask(target.mask_file), 32))
    assert tuple(seen) == samples


def test_pngs_are_decoded_once(toy, tmp_path):
    samples = load_dataset(toy).train
    decode(samples, 32, tmp_path / "a")
    (toy / "train" / "p0-z0_toy.png").unlink()
    assert len(decode(samples, 32, tmp_path / "a").images) == len(samples)


def test_training_batches_repeat_by_seed_and_vary_the_phrase(toy, tmp_path):
    data = decode(load_dataset(toy).train, 32, tmp_path / "a")
    first, again, other = (list(islice(training_batches(data, RECIPE, seed), 20)) for seed in (0, 0, 1))
    assert all(torch.equal(a.images, b.images) and a.prompts == b.prompts for a, b in zip(first, again, strict=True))
    assert any(a.prompts != b.prompts for a, b in zip(first, other, strict=True))
    assert {len(b.prompts) for b in first} == {5}
    assert {p for b in first for p in b.prompts} == {
        "block in toy image",
        "the block",
        "dark disc in toy image",
        "the dark disc",
    }


@pytest.mark.parametrize(
    ("rule", "expected"), [("proportional", [0.9, 0.1]), ("square-root", [0.75, 0.25]), ("uniform", [0.5, 0.5])]
)
def test_small_data_sets_are_drawn_by_the_stated_rule(rule, expected):
    np.testing.assert_allclose(dataset_weights([900, 100], rule), expected)
