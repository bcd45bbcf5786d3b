import json
import shutil

import numpy as np
import pytest
from PIL import Image

from bench.data.dataset import load_dataset, load_image, load_mask
from bench.data.prepare.biomedparse import find_sets, named_patient

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
STEMS = {
    "train": ["LIDC-IDRI-0001_3_20_CT_lung", "LIDC-IDRI-0001_3_21_CT_lung", "LIDC-IDRI-0002_4_7_CT_lung"],
    "test": ["LIDC-IDRI-0003_5_30_CT_lung", "LIDC-IDRI-0003_5_31_CT_lung"],
}


@pytest.fixture
def published(tmp_path):
    """LIDC-IDRI as BiomedParseData has it, 32 px: RGBA images and masks with alpha 255, no JSON."""
    root = tmp_path / "BiomedParseData" / "LIDC-IDRI"
    rng = np.random.default_rng(0)
    for side, stems in STEMS.items():
        (root / side).mkdir(parents=True)
        (root / f"{side}_mask").mkdir()
        for place, stem in enumerate(stems):
            image, mask = np.full((2, 32, 32, 4), 255, np.uint8)
            image[..., :3] = rng.integers(0, 256, (32, 32, 1))
            mask[..., :3] = 0
            mask[5 : 9 + place, 6:10, :3] = 255
            Image.fromarray(image).save(root / side / f"{stem}.png")
            Image.fromarray(mask).save(root / f"{side}_mask" / f"{stem}_nodule.png")
    return root


def prepare(bench, source, out, *more):
    words = ("--source", source, "--out", out, "--size", 32, "--workers", 1)
    return bench("data", "prepare", "biomedparse", *words, *more)


def test_missing_json_is_rebuilt_from_the_names(published, bench, tmp_path):
    done = prepare(bench, published.parent, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    dataset = load_dataset(tmp_path / "out" / "LIDC-IDRI")
    for side in ("train", "test"):
        samples = getattr(dataset, side)
        assert [s.image_id for s in samples] == STEMS[side]
        assert [s.patient for s in samples] == [stem[:14] for stem in STEMS[side]]
        for sample in samples:
            (target,) = sample.targets
            assert target.object == "nodule" and target.prompts[0] == "nodule in lung CT" and len(target.prompts) > 3
            theirs = published / side / f"{sample.image_id}.png"
            np.testing.assert_array_equal(load_image(sample.image_file), load_image(theirs))
            with Image.open(target.mask_file) as mask:
                assert mask.mode == "L" and set(np.unique(mask)) == {0, 255}
            theirs = published / f"{side}_mask" / target.mask_file.name
            np.testing.assert_array_equal(load_mask(target.mask_file), load_mask(theirs))
    assert bench("data", "check", tmp_path / "out").returncode == 0
    assert "name no patient" not in done.stdout


def test_their_own_sentences_and_patients_are_used(published, bench, tmp_path):
    for side, stems in STEMS.items():
        images = [{"id": 7 + i, "file_name": f"{stem}.png", "height": 32, "width": 32} for i, stem in enumerate(stems)]
        annotations = [
            {
                "image_id": 7 + i,
                "mask_file": f"{stem}_nodule.png",
                "sentences": [{"raw": "a spot"}, {"raw": "a spot "}],
                "patient": f"{side} someone",
            }
            for i, stem in enumerate(stems)
        ]
        (published / f"{side}.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    assert prepare(bench, published, tmp_path / "out").returncode == 0
    dataset = load_dataset(tmp_path / "out" / "LIDC-IDRI")
    assert {t.prompts for s in (*dataset.train, *dataset.test) for t in s.targets} == {("a spot",)}
    assert {s.patient for s in dataset.test} == {"test someone"}


def test_a_mask_that_says_no_object_is_named(published, bench, tmp_path):
    stem = STEMS["train"][0]
    (published / "train_mask" / f"{stem}_nodule.png").rename(published / "train_mask" / f"{stem}.png")
    annotation = {"image_id": 1, "mask_file": f"{stem}.png", "sentences": [{"raw": "nodule"}]}
    image = {"id": 1, "file_name": f"{stem}.png", "height": 32, "width": 32}
    (published / "train.json").write_text(json.dumps({"images": [image], "annotations": [annotation]}))
    done = prepare(bench, published.parent, tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"train.json has no usable object of {stem}.png, which is not named {stem}_<object>.png" in done.stderr


@pytest.mark.parametrize("name", ["train.json", "test/LIDC-IDRI-0003_5_30_CT_lung.png"])
def test_pointers_are_named_with_the_command(published, bench, tmp_path, name):
    (published / name).write_text(POINTER)
    done = prepare(bench, published, tmp_path / "out")
    assert done.returncode == 2
    assert f"{published / name} is a Git-LFS pointer, not the file itself: run `git lfs pull`" in done.stderr
    assert not (tmp_path / "out").exists()


def test_missing_images_are_counted(published, bench, tmp_path):
    for stem in STEMS["train"][:2]:
        (published / "train" / f"{stem}.png").unlink()
    done = prepare(bench, published, tmp_path / "out")
    assert done.returncode == 2
    assert "LIDC-IDRI-0001_3_20_CT_lung.png is missing (and 1 more): download LIDC-IDRI again" in done.stderr


def test_a_patient_on_both_sides_leaves_train(published, bench, tmp_path):
    for folder, end in (("train", ""), ("train_mask", "_nodule")):
        for number in (20, 21):
            old = published / folder / f"LIDC-IDRI-0001_3_{number}_CT_lung{end}.png"
            old.rename(old.with_name(old.name.replace("0001_3", "0003_9")))
    done = prepare(bench, published, tmp_path / "out")
    assert done.returncode == 0
    assert "1 left out" in done.stdout and "patient LIDC-IDRI-0003 is in test too" in done.stdout
    dataset = load_dataset(tmp_path / "out" / "LIDC-IDRI")
    assert {s.patient for s in dataset.train} == {"LIDC-IDRI-0002"}
    assert {s.patient for s in dataset.test} == {"LIDC-IDRI-0003"}


def test_images_without_masks_are_kept_when_asked_for(published, bench, tmp_path):
    stem = "LIDC-IDRI-0002_4_9_CT_lung"
    shutil.copy(published / "train" / f"{STEMS['train'][0]}.png", published / "train" / f"{stem}.png")
    for out, more, expected in (("a", (), 3), ("b", ("--keep-empty", 1), 4)):
        assert prepare(bench, published, tmp_path / out, *more).returncode == 0
        folder = tmp_path / out / "LIDC-IDRI"
        assert len(json.loads((folder / "train.json").read_text())["images"]) == expected
        assert (folder / "train" / f"{stem}.png").exists() is bool(more)
        assert len(load_dataset(folder).train) == 3


def test_the_published_demo(shared, bench, tmp_path):
    """27 pictures of nine modalities: pixels, masks and areas as published, split by image."""
    demo = shared / "data" / "biomedparse_demo"
    words = ("--source", demo, "--out", tmp_path, "--workers", 2)
    done = bench("data", "prepare", "biomedparse", *words)
    assert done.returncode == 0, done.stderr
    dataset = load_dataset(tmp_path / "biomedparse_demo")
    assert (len(dataset.train), len(dataset.test)) == (22, 5)
    assert "27 images name no patient" in done.stdout
    published = json.loads((demo / "demo.json").read_text())
    theirs = {row["mask_file"]: (row["area"], row["sentences"][0]["raw"]) for row in published["annotations"]}
    ours = {}
    for sample in (*dataset.train, *dataset.test):
        np.testing.assert_array_equal(load_image(sample.image_file), load_image(demo / "demo" / sample.image_file.name))
        for target in sample.targets:
            ours[target.mask_file.name] = int(load_mask(target.mask_file).sum()), target.prompts[0]
    assert ours == theirs
    assert bench("data", "check", tmp_path / "biomedparse_demo").returncode == 0


@pytest.mark.parametrize(
    ("stem", "patient"),
    [
        ("LIDC-IDRI-0078_1_23_CT_lung", "LIDC-IDRI-0078"),
        ("amos_0333_112_CT_abdomen", "amos_0333"),
        ("hepaticvessel_363_18_CT_liver", "hepaticvessel_363"),
        ("BRATS_001_77_MRI-FLAIR_brain", "BRATS_001"),
        ("00_CT_lung", None),
        ("covid_1_2_X-Ray_chest", None),
    ],
)
def test_patients_in_names(stem, patient):
    assert named_patient(stem) == patient


def test_sets_have_the_papers_names(tmp_path):
    for name in ("amos22/CT", "amos22/MRI", "MSD/Task06_Lung", "LIDC-IDRI"):
        (tmp_path / name / "train").mkdir(parents=True)
        (tmp_path / name / "train_mask").mkdir()
    assert set(find_sets(tmp_path)) == {"AMOS22-CT", "AMOS22-MRI", "MSD-Lung", "LIDC-IDRI"}
    assert set(find_sets(tmp_path / "amos22" / "CT")) == {"AMOS22-CT"}
