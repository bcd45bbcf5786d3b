import json
import shutil

import numpy as np
import pytest
from PIL import Image

from bench.data.check import check_datasets
from bench.data.dataset import find_datasets, load_dataset, load_image, load_mask
from bench.errors import UserError


def edit(folder, change, split="train"):
    file = folder / f"{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_reads_images_targets_and_prompts(toy):
    dataset = load_dataset(toy)
    assert (len(dataset.train), len(dataset.test), dataset.phantom) == (10, 4, False)
    sample = dataset.train[0]
    assert (sample.image_id, sample.patient, sample.height, sample.width) == ("p0-z0_toy", "p0", 48, 40)
    assert [t.object for t in sample.targets] == ["block", "dark disc"]
    assert sample.targets[1].prompts == ("dark disc in toy image", "the dark disc")
    assert load_image(sample.image_file).shape == (48, 40, 3)
    assert load_mask(sample.targets[0].mask_file).sum() == 48


def test_a_sound_data_set_has_no_problem(toy):
    assert check_datasets([toy]) == []


@pytest.mark.parametrize("missing", ["train", "test"])
def test_both_sides_are_needed(toy, missing):
    (toy / f"{missing}.json").unlink()
    with pytest.raises(UserError, match=rf"{missing}\.json: missing"):
        load_dataset(toy)


def break_images_key(folder):
    edit(folder, lambda c: c.pop("images"))


def break_json(folder):
    (folder / "train.json").write_text('{"images": [')


def break_missing_png(folder):
    (folder / "train" / "p1-z0_toy.png").unlink()


def break_missing_mask(folder):
    (folder / "train_mask" / "p1-z0_toy_block.png").unlink()


def break_path(folder):
    shutil.copy(folder / "train_mask" / "p1-z0_toy_block.png", folder / "elsewhere.png")
    edit(folder, lambda c: c["annotations"][0].update(mask_file="../elsewhere.png"))


def break_patient(folder):
    edit(folder, lambda c: [a.update(patient="p0") for a in c["annotations"]], "test")


def break_duplicate(folder):
    edit(folder, lambda c: c["annotations"].append(c["annotations"][0]))


def name_mask_as_image(folder, **fields):
    (folder / "train_mask" / "p1-z0_toy_block.png").rename(folder / "train_mask" / "p1-z0_toy.png")

    def change(content):
        (annotation,) = [a for a in content["annotations"] if a["mask_file"] == "p1-z0_toy_block.png"]
        annotation.update(mask_file="p1-z0_toy.png", **fields)

    edit(folder, change)


def test_a_mask_of_any_name_may_say_its_object_in_the_annotation(toy):
    before = {target.object for sample in load_dataset(toy).train for target in sample.targets}
    name_mask_as_image(toy, object="a block")
    assert {target.object for sample in load_dataset(toy).train for target in sample.targets} == before | {"a block"}


def break_sentence(folder):
    edit(folder, lambda c: c["annotations"][0].update(sentences=[]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_images_key, "train.json: no usable 'images'"),
        (break_json, "train.json: not valid JSON"),
        (break_missing_png, "p1-z0_toy.png: missing"),
        (break_missing_mask, "p1-z0_toy_block.png: missing"),
        (break_path, r"'\.\./elsewhere.png' leaves train_mask/"),
        (break_patient, "patient 'p0' is in train and in test"),
        (break_duplicate, "annotated twice"),
        (break_sentence, "no sentence"),
        (name_mask_as_image, "mask p1-z0_toy.png is not named p1-z0_toy_<object>.png, so its object is unknown"),
    ],
)
def test_layout_problems_name_the_file(toy, damage, message):
    damage(toy)
    with pytest.raises(UserError, match=message):
        load_dataset(toy)


def truncate(folder):
    file = folder / "train" / "p1-z0_toy.png"
    file.write_bytes(file.read_bytes()[:200])


def resize_mask(folder):
    file = folder / "train_mask" / "p1-z0_toy_block.png"
    Image.open(file).resize((20, 20)).save(file)


def empty_mask(folder):
    Image.fromarray(np.zeros((48, 40), np.uint8)).save(folder / "train_mask" / "p1-z0_toy_block.png")


def wrong_size(folder):
    edit(folder, lambda c: c["images"][3].update(height=999))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "cannot be read as an image"),
        (resize_mask, "mask is 20 x 20 px, its image 48 x 40"),
        (empty_mask, "mask is empty"),
        (wrong_size, "the JSON says 999 x 40"),
    ],
)
def test_pixel_problems_are_found(toy, damage, message):
    damage(toy)
    problems = check_datasets([toy])
    assert len(problems) == 1
    assert message in str(problems[0])


def test_all_problems_come_at_once(toy):
    for damage in (break_path, empty_mask, break_patient, wrong_size):
        damage(toy)
    assert len(check_datasets([toy])) >= 4


def test_alpha_is_not_a_mask(tmp_path):
    rgba = np.zeros((6, 5, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[2, 3, :3] = 255
    Image.fromarray(rgba).save(tmp_path / "m.png")
    assert np.argwhere(load_mask(tmp_path / "m.png")).tolist() == [[2, 3]]


def test_find_datasets_takes_a_folder_of_data_sets(toy):
    shutil.copytree(toy, toy.parent / "second")
    assert [f.name for f in find_datasets([toy.parent])] == ["second", "toy"]
    with pytest.raises(UserError, match="two data sets are named 'toy'"):
        find_datasets([toy, toy])
    with pytest.raises(UserError, match="no such data folder"):
        find_datasets([toy / "nowhere"])


def test_real_data_sets_are_sound(shared):
    folders = find_datasets([shared / "data" / "openkbp", shared / "data" / "idrid"])
    assert check_datasets(folders) == []
    openkbp, idrid = (load_dataset(folder) for folder in folders)
    assert (len(openkbp.train), len(openkbp.test)) == (902, 363)
    assert sum(len(s.targets) for s in openkbp.train) == 2458
    assert (len({s.patient for s in openkbp.train}), len({s.patient for s in openkbp.test})) == (202, 82)
    assert (len(idrid.train), len(idrid.test)) == (54, 27)
