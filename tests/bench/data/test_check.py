"""`bench data check`: one bad input of each kind, found by the command line, named, and nothing else found."""

import json
import shutil
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bench import cli
from bench.data.check import check_datasets
from bench.data.dataset import Kind

IMAGE, MASK = "train/p1-z0_toy.png", "train_mask/p1-z0_toy_block.png"


def edit(folder, change, split="train"):
    file = folder / f"{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def check(folder, *words):
    """Exit code, output, and the problems as the JSON file has them."""
    out = folder.parent / "problems.json"
    result = CliRunner().invoke(cli.app, ["data", "check", str(folder), "--json", str(out), *words])
    return result.exit_code, result.output, json.loads(out.read_text())["problems"]


def test_a_sound_data_set(toy):
    code, output, problems = check(toy)
    assert (code, problems) == (0, [])
    assert "no problems in 1 data set: toy" in output


def save_mask(folder, values):
    Image.fromarray(values).save(folder / MASK)


def mask_of(folder):
    return np.array(Image.open(folder / MASK))


def missing_image(folder):
    (folder / IMAGE).unlink()


def missing_mask(folder):
    (folder / MASK).unlink()


def missing_json(folder):
    (folder / "test.json").unlink()


def broken_json(folder):
    (folder / "test.json").write_text('{"images": [')


def text_as_image(folder):
    (folder / IMAGE).write_text("no image")


def empty_file(folder):
    (folder / MASK).write_bytes(b"")


def truncated_image(folder):
    content = (folder / IMAGE).read_bytes()
    (folder / IMAGE).write_bytes(content[: len(content) // 2])


def truncated_mask(folder):
    (folder / MASK).write_bytes((folder / MASK).read_bytes()[:-20])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def pointer_image(folder):
    (folder / IMAGE).write_text(POINTER)


def pointer_json(folder):
    (folder / "test.json").write_text(POINTER)


def sixteen_bits(folder):
    Image.fromarray(np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)).save(folder / IMAGE)


def mask_of_another_size(folder):
    Image.open(folder / MASK).resize((20, 24)).save(folder / MASK)


def size_not_as_stated(folder):
    edit(folder, lambda c: c["images"][2].update(height=999))


def smooth_mask(folder):
    mask = mask_of(folder)
    mask[0, :3] = (1, 37, 128)
    save_mask(folder, mask)


def coloured_mask(folder):
    colours = np.repeat(mask_of(folder)[..., None], 3, axis=2)
    colours[0, 0] = (255, 0, 0)
    save_mask(folder, colours)


def empty_mask(folder):
    save_mask(folder, np.zeros((48, 40), np.uint8))


def only_alpha(folder):
    rgba = np.zeros((48, 40, 4), np.uint8)
    rgba[..., 3] = 255
    save_mask(folder, rgba)


def other_area(folder):
    edit(folder, lambda c: c["annotations"][4].update(area=7))


def image_not_in_json(folder):
    shutil.copy(folder / IMAGE, folder / "train" / "p9-z0_toy.png")


def image_without_annotation(folder):
    edit(folder, lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] != 2]))
    for file in (folder / "train_mask").glob("p1-z0_*"):
        file.unlink()


def mask_not_in_json(folder):
    shutil.copy(folder / MASK, folder / "train_mask" / "p1-z0_toy_third.png")


def same_id(folder):
    def change(content):
        content["images"].append(content["images"][0] | {"file_name": "again.png"})
        content["images"][0]["patient"] = "p0"
        for annotation in content["annotations"]:
            if annotation["image_id"] == 0:
                annotation["mask_file"] = annotation["mask_file"].replace("p0-z0_toy", "again")

    for folder_name in ("train", "train_mask"):
        for file in (folder / folder_name).glob("p0-z0_toy*"):
            file.rename(file.with_name(file.name.replace("p0-z0_toy", "again")))
    shutil.copy(folder / "train" / "again.png", folder / "train" / "p0-z0_toy.png")
    edit(folder, change)


def object_twice(folder):
    edit(folder, lambda c: c["annotations"].append(c["annotations"][0]))


def same_name(folder):
    edit(folder, lambda c: c["images"].append(c["images"][0] | {"id": 77}))


def path_outside(folder):
    shutil.copy(folder / MASK, folder.parent / "elsewhere.png")
    edit(folder, lambda c: c["annotations"][0].update(mask_file="../../elsewhere.png"))
    (folder / "train_mask" / "p0-z0_toy_block.png").unlink()


def patient_on_both_sides(folder):
    edit(folder, lambda c: [a.update(patient="p0") for a in c["annotations"] if a["image_id"] == 0], "test")


def prompt_of_the_other(folder):
    edit(folder, lambda c: c["annotations"][0].update(sentences=[{"raw": "dark disc in toy image"}]))


def brighter_copy_in_test(folder):
    Image.open(folder / IMAGE).point(lambda v: 0.8 * v + 20).save(folder / "test" / "p5-z0_toy.png", optimize=True)


BAD = [
    (missing_image, "missing file", IMAGE, "missing", "add it or take it out of train.json"),
    (missing_mask, "missing file", MASK, "missing", "add it or take it out of train.json"),
    (missing_json, "missing file", "test.json", "missing", "docs/data.md"),
    (broken_json, "layout", "test.json", "not valid JSON", "write it again"),
    (text_as_image, "unreadable", IMAGE, "cannot be read as an image", "replace the file"),
    (empty_file, "unreadable", MASK, "cannot be read as an image", "replace the file"),
    (truncated_image, "truncated", IMAGE, "the end of the PNG is missing", "copy or download it again"),
    (truncated_mask, "truncated", MASK, "the end of the PNG is missing", "copy or download it again"),
    (pointer_image, "Git-LFS pointer", IMAGE, "a Git-LFS pointer", "git lfs pull"),
    (pointer_json, "Git-LFS pointer", "test.json", "a Git-LFS pointer", "git lfs pull"),
    (sixteen_bits, "unreadable", IMAGE, "more than 8 bits", "scale it to 0..255"),
    (mask_of_another_size, "wrong size", MASK, "mask is 24 x 20 px, its image 48 x 40", "the image's size"),
    (size_not_as_stated, "wrong size", IMAGE, "the JSON says 999 x 40", "mend height and width"),
    (smooth_mask, "not binary", MASK, "it holds 5 values (0, 1, 37, 128, ...)", "0 and 255 only"),
    (coloured_mask, "not binary", MASK, "it holds 3 values (0, 255/0/0, 255/255/255)", "0 and 255 only"),
    (empty_mask, "empty mask", MASK, "mask is empty", "take out the annotation"),
    (only_alpha, "empty mask", MASK, "mask is empty", "take out the annotation"),
    (other_area, "wrong area", MASK, "an area of 7 px, the mask has 48", "mend 'area' or the mask"),
    (image_not_in_json, "image without mask", "train/p9-z0_toy.png", "is not in train.json", "annotate it"),
    (image_without_annotation, "image without mask", IMAGE, "has no annotation", "name its patient in 'images'"),
    (mask_not_in_json, "mask without annotation", "p1-z0_toy_third.png", "is not in train.json", "or remove it"),
    (same_id, "duplicate id", "train.json", "2 images have the id '0'", "give each its own"),
    (same_name, "duplicate id", "train.json", "2 images have the image name 'p0-z0_toy'", "give each its own"),
    (object_twice, "duplicate annotation", "train.json", "'block' is annotated twice in p0-z0_toy", "take one out"),
    (path_outside, "outside folder", "train.json", "'../../elsewhere.png' leaves train_mask/", "plain file name"),
    (patient_on_both_sides, "patient leak", "toy", "patient 'p0' is in train and in test", "bench data split"),
    (prompt_of_the_other, "wrong prompt", "train.json", "of 'block' names 'dark disc'", "mend its sentences"),
    (brighter_copy_in_test, "image leak", "test/p5-z0_toy.png", "as train/p1-z0_toy.png of toy", "take one of the two"),
]


@pytest.mark.parametrize(("damage", "kind", "file", "what", "fix"), BAD, ids=[row[0].__name__ for row in BAD])
def test_each_kind_of_bad_input_is_found_named_and_given_a_fix(toy, damage, kind, file, what, fix):
    damage(toy)
    code, output, problems = check(toy)
    assert code == 2 and "1 data problem " in output
    (problem,) = problems
    assert (problem["dataset"], problem["kind"]) == ("toy", kind)
    assert problem["file"].endswith(file)
    assert what in problem["problem"] and fix in problem["fix"]


def test_every_kind_that_the_checker_knows_has_a_bad_input_here():
    assert {row[1] for row in BAD} == set(get_args(Kind))


def test_all_problems_come_in_one_run(toy):
    apart = (
        truncated_image,
        smooth_mask,
        mask_not_in_json,
        patient_on_both_sides,
        prompt_of_the_other,
        image_not_in_json,
    )
    for damage in apart:
        damage(toy)
    code, output, problems = check(toy)
    assert code == 2 and "6 data problems" in output
    assert len({problem["kind"] for problem in problems}) == 6


def test_many_of_a_kind_are_counted_on_the_screen_and_written_in_full(toy):
    for number in range(25):
        shutil.copy(toy / MASK, toy / "train_mask" / f"p1-z0_toy_{number}.png")
    code, output, problems = check(toy)
    assert code == 2 and len(problems) == 25
    assert "25 data problems" in output and "and 5 more" in output
    assert output.count("is not in train.json") == 20


def test_a_negative_that_names_its_patient_is_no_problem(toy):
    image_without_annotation(toy)
    edit(toy, lambda c: c["images"][2].update(patient="p1"))
    assert check(toy)[0] == 0
    edit(toy, lambda c: c["images"][2].update(patient="p5"))  # who is in test
    assert [problem["kind"] for problem in check(toy)[2]] == ["patient leak"]


def test_a_picture_of_another_data_set_is_found_too(toy):
    other = toy.parent / "other"
    shutil.copytree(toy, other)
    problems = check_datasets([toy, other])
    # each test image of one is no training image of the other: the same patients are on the same sides
    assert problems == []
    shutil.copy(toy / IMAGE, other / "test" / "p5-z0_toy.png")
    (first,) = [p for p in check_datasets([toy, other]) if p.kind == "image leak"]
    assert first.dataset == "other" and "train/p1-z0_toy.png of " in first.problem


def test_published_folders_have_no_false_alarm(shared):
    """No picture of another patient counts as a copy; RGBA masks and areas as published are sound."""
    folders = [shared / "data" / name for name in ("openkbp", "idrid")]
    assert check_datasets(folders) == []


def test_masks_of_biomedparse_are_sound(shared, tmp_path):
    """The published demo images as both sides of a set: RGBA masks with alpha 255, areas as stated."""
    source = shared / "data" / "biomedparse_demo"
    content = json.loads((source / "demo.json").read_text())
    folder = tmp_path / "demo"
    halves = [{image["id"] for image in content["images"][start::2]} for start in (0, 1)]
    for split, ids in zip(("train", "test"), halves, strict=True):
        (folder / split).mkdir(parents=True)
        (folder / f"{split}_mask").mkdir()
        side = {
            "images": [image for image in content["images"] if image["id"] in ids],
            "annotations": [row for row in content["annotations"] if row["image_id"] in ids],
        }
        for image in side["images"]:
            shutil.copy(source / "demo" / image["file_name"], folder / split)
        for row in side["annotations"]:
            shutil.copy(source / "demo_mask" / row["mask_file"], folder / f"{split}_mask")
        (folder / f"{split}.json").write_text(json.dumps(side))
    assert check_datasets([folder]) == []


@pytest.mark.parametrize("words", [("check", "--json"), ("split", "--out"), ("stats", "--plot"), ("preview", "--out")])
def test_a_folder_as_the_file_to_write_is_told_first(toy, words):
    command, option = words
    result = CliRunner().invoke(cli.app, ["data", command, str(toy), option, str(toy)], terminal_width=200)
    assert result.exit_code == 2 and "is a directory" in result.output
    assert "reading" not in result.output and "validation" not in result.output
