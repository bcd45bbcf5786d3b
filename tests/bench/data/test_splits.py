import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench.data.dataset import load_dataset
from bench.data.splits import load_splits, make_splits
from bench.errors import UserError


def patients(samples):
    return {s.patient for s in samples}


def test_patients_stay_on_one_side(toy):
    dataset = load_dataset(toy)
    splits = make_splits([dataset])
    sides = [patients(samples) for samples in splits.sides().values()]
    assert all(not a & b for i, a in enumerate(sides) for b in sides[i + 1 :])
    assert len(patients(splits.val)) == 1  # 20% of 5
    assert set(splits.train) | set(splits.val) == set(dataset.train)
    assert splits.test == dataset.test


def test_seed_changes_validation_only(toy):
    dataset = load_dataset(toy)
    held_out = {min(patients(make_splits([dataset], seed=seed).val)) for seed in range(12)}
    assert len(held_out) > 1
    assert {make_splits([dataset], seed=seed).test for seed in range(3)} == {dataset.test}


def test_generated_and_real_images_are_not_put_together(toy):
    real = load_dataset(toy)
    generated = replace(real, name="made", phantom=True)
    with pytest.raises(UserError, match="made holds generated images and the other data sets real ones"):
        make_splits([real, generated])
    assert make_splits([generated]).phantom and not make_splits([real]).phantom


def test_hash_follows_the_content(toy):
    first = make_splits([load_dataset(toy)])
    assert first.hash == make_splits([load_dataset(toy)]).hash
    assert first.hash != make_splits([load_dataset(toy)], seed=1).hash
    file = toy / "train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["sentences"][0]["raw"] = "another phrase"
    file.write_text(json.dumps(content))
    assert first.hash != make_splits([load_dataset(toy)]).hash


@pytest.mark.parametrize(
    "change", [{"dataset": "other"}, {"image_id": "other"}, {"patient": "other"}, {"height": 1}, {"width": 1}], ids=str
)
def test_hash_covers_what_is_said_of_an_image(toy, change):
    splits = make_splits([load_dataset(toy)])
    first, *others = splits.test
    assert replace(splits, test=(replace(first, **change), *others)).hash != splits.hash


@pytest.mark.parametrize("change", [{"object": "other"}, {"prompts": ("other",)}], ids=str)
def test_hash_covers_what_is_said_of_a_mask(toy, change):
    splits = make_splits([load_dataset(toy)])
    first, *others = splits.test
    target, *rest = first.targets
    changed = replace(first, targets=(replace(target, **change), *rest))
    assert replace(splits, test=(changed, *others)).hash != splits.hash


def test_hash_covers_the_side(toy):
    splits = make_splits([load_dataset(toy)])
    moved = replace(splits, train=splits.train[:-1], val=(splits.train[-1], *splits.val))
    assert moved.hash != splits.hash


def test_saved_splits_come_back_or_are_refused(toy, tmp_path):
    splits = make_splits([load_dataset(toy)])
    splits.save(tmp_path / "splits.json")
    assert load_splits(tmp_path / "splits.json") == splits
    image = np.array(Image.open(toy / "train" / "p0-z0_toy.png"))
    before = (toy / "train" / "p0-z0_toy.png").stat().st_size
    image[0, 0] ^= 1
    Image.fromarray(image).save(toy / "train" / "p0-z0_toy.png")
    assert abs((toy / "train" / "p0-z0_toy.png").stat().st_size - before) < 20
    with pytest.raises(UserError, match="the data have changed"):
        load_splits(tmp_path / "splits.json")


def test_data_sets_at_hand_are_not_read_again(toy, tmp_path):
    dataset = load_dataset(toy)
    splits = make_splits([dataset])
    splits.save(tmp_path / "splits.json")
    (toy / "train.json").unlink()
    assert load_splits(tmp_path / "splits.json", [dataset]) == splits
    with pytest.raises(UserError, match=r"train\.json: missing"):
        load_splits(tmp_path / "splits.json")


def test_one_patient_cannot_be_split(toy):
    file = toy / "train.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["patient"] = "only one"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="one training patient"):
        make_splits([load_dataset(toy)])
