import io
import json

import numpy as np
import pytest
from PIL import Image

from bench.data.leaks import SAME_PICTURE, image_leaks, perceptual_hash
from bench.interface import Sample


def distance(a, b):
    return 1 - float(perceptual_hash(a) @ perceptual_hash(b))


def test_the_distance_is_one_minus_the_correlation_of_the_thumbnails():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (2, 128, 96), dtype=np.uint8)
    # means over blocks of 4 x 3 px, as the thumbnail of 32 x 32 of this size has them, up to rounding to 8 bits
    blocks = pixels.reshape(2, 32, 4, 32, 3).mean(axis=(2, 4)).reshape(2, -1)
    expected = 1 - np.corrcoef(blocks)[0, 1]
    assert distance(*map(Image.fromarray, pixels)) == pytest.approx(expected, abs=5e-3)


def test_an_image_of_one_grey_is_like_no_other():
    grey = Image.new("L", (50, 50), 90)
    assert distance(grey, grey) == 1


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer)


COPIES = {
    "another compression": jpeg,
    "twice the size": lambda image: image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "brighter": lambda image: image.point(lambda value: min(255, value + 10)),
    "of another gamma": lambda image: image.point(lambda value: round(255 * (value / 255) ** 0.9)),
    "in colour": lambda image: image.convert("RGB"),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_real_slices_are_found_and_other_patients_are_not(shared, name):
    folder = shared / "data" / "openkbp"
    sides, hashes = {}, {}
    for side, step in (("train", 3), ("test", 12)):
        content = json.loads((folder / f"{side}.json").read_text())
        patients = {row["image_id"]: row["patient"] for row in content["annotations"]}
        rows = [row for row in content["images"] if row["id"] in patients][::step]
        files = [folder / side / row["file_name"] for row in rows]
        sides[side] = [
            Sample("openkbp", f.stem, patients[r["id"]], f, 128, 128, ()) for f, r in zip(files, rows, strict=True)
        ]
        hashes[side] = np.array([perceptual_hash(Image.open(file)) for file in files])
    assert len(sides["test"]) > 25
    assert list(image_leaks(sides["train"], sides["test"], hashes["train"], hashes["test"])) == []
    copies = [Image.open(sample.image_file).convert("L") for sample in sides["train"][::20]]
    copied = np.array([perceptual_hash(COPIES[name](image)) for image in copies])
    found = list(image_leaks(sides["train"], sides["test"][: len(copied)], hashes["train"], copied))
    assert len(found) == len(copied)
    for problem, sample in zip(found, sides["train"][::20], strict=True):
        assert f"train/{sample.image_file.name} of openkbp" in problem.problem


def test_a_patient_on_both_sides_is_told_once_and_not_by_every_slice(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8))
    own_hash = perceptual_hash(image)[None]
    train = [Sample("a", "x", "p", tmp_path / "x.png", 40, 40, ())]
    same = [Sample("a", "y", "p", tmp_path / "y.png", 40, 40, ())]
    other = [Sample("a", "y", "q", tmp_path / "y.png", 40, 40, ())]
    assert list(image_leaks(train, same, own_hash, own_hash)) == []
    assert len(list(image_leaks(train, other, own_hash, own_hash))) == 1
    assert SAME_PICTURE < 0.005
