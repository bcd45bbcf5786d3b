import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from bench.data.dataset import load_dataset
from bench.data.images import WINDOWS
from bench.data.prepare.amos import JOINED, ORGANS, volumes
from experiments.paper import TABLE_9

PAIRS = {"left kidney", "right kidney", "left adrenal gland", "right adrenal gland"}
NUMBERS = {"Tr": (1, 507), "Va": (200, 230, 540, 560)}


@pytest.fixture(scope="module")
def amos22(tmp_path_factory):
    """Six volumes: organ n of 15 is a box in column n; the left kidney ends a slice before the right one."""
    root = tmp_path_factory.mktemp("download") / "amos22"
    rng = np.random.default_rng(0)
    for folder, numbers in NUMBERS.items():
        for number in numbers:
            label = np.zeros((64, 40, 8), np.uint8)
            for organ in range(1, 16):
                label[4 * organ : 4 * organ + 3, 8:30, 2:6] = organ
            label[12:15, :, 5] = 0
            image = rng.normal(60, 90, label.shape) if number <= 500 else rng.gamma(2.0, 100, label.shape)
            for kind, array in (("images", image.astype(np.int16)), ("labels", label)):
                file = root / f"{kind}{folder}" / f"amos_{number:04}.nii.gz"
                file.parent.mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1, 5, 1])), file)
    return root


@pytest.fixture(scope="module")
def prepared(amos22, bench, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    done = bench("data", "prepare", "amos", "--source", amos22, "--out", out, "--size", 64, "--workers", 2)
    assert done.returncode == 0, done.stderr
    return out


def test_end_to_end(prepared, bench):
    done = bench("data", "check", prepared)
    assert done.returncode == 0, done.stdout
    assert "AMOS22-CT, AMOS22-MRI" in done.stdout


@pytest.mark.parametrize("name", ["AMOS22-CT", "AMOS22-MRI"])
def test_objects_are_those_of_table_9(prepared, name):
    dataset = load_dataset(prepared / name)
    objects = {target.object for sample in (*dataset.train, *dataset.test) for target in sample.targets}
    listed = {object for dataset, object in TABLE_9 if dataset == name}
    assert objects - {"bladder"} == listed - {"bladder"}  # the table has no bladder in MRI
    assert ("prostate or uterus" in objects) is False


def test_sides_are_the_authors(prepared, shared):
    """The ids of the published test masks are on the side of our rule, and both sides are there."""
    rule = {}
    for name in ("AMOS22-CT", "AMOS22-MRI"):
        manifest = json.loads((prepared / name / "manifest.json").read_text())
        rule |= {int(id.split("_")[1]): record["split"] for id, record in manifest["volumes"].items()}
    assert rule == {1: "train", 507: "train", 200: "train", 230: "test", 540: "train", 560: "test"}
    results = shared / "data" / "biomedparse_results" / "amos22"
    published = {int(line.split("_")[1]) for file in results.glob("*/*.csv") for line in file.open() if "amos_" in line}
    assert min(published) > 228 and not published & set(range(410, 557))


def test_joined_organs_need_both_sides(prepared):
    sample = {s.image_id: s for s in load_dataset(prepared / "AMOS22-CT").train}
    for number, both in ((4, True), (5, False)):
        masks = {
            t.object: np.asarray(Image.open(t.mask_file)) > 0 for t in sample[f"amos_0001_{number}_CT_abdomen"].targets
        }
        assert ("kidney" in masks) is both
        np.testing.assert_array_equal(
            masks["adrenal gland"], masks["left adrenal gland"] | masks["right adrenal gland"]
        )
        if both:
            np.testing.assert_array_equal(masks["kidney"], masks["left kidney"] | masks["right kidney"])


def test_left_is_on_the_right_of_the_picture(prepared):
    """Label 3 (left kidney) has the higher x in a RAS file here, so it is nearer to the right side of the body."""
    sample = next(s for s in load_dataset(prepared / "AMOS22-CT").train if s.image_id == "amos_0001_3_CT_abdomen")
    columns = {t.object: np.argwhere(np.asarray(Image.open(t.mask_file)))[:, 1].mean() for t in sample.targets}
    assert columns["left kidney"] < columns["right kidney"] < columns["spleen"]


def test_livers_come_in_their_window_too(prepared, amos22):
    samples = {s.image_id: s for s in load_dataset(prepared / "AMOS22-CT").train}
    stored = np.asarray(nibabel.load(amos22 / "imagesTr" / "amos_0001.nii.gz").dataobj)[:, :, 3]
    shown = np.pad(stored[::-1, ::-1].T.astype(float), ((12, 12), (0, 0)), constant_values=-5000)
    for site in ("abdomen", "liver"):
        low, high = WINDOWS[site]
        image = np.asarray(Image.open(samples[f"amos_0001_3_CT_{site}"].image_file))
        np.testing.assert_allclose(image, ((shown - low) / (high - low)).clip(0, 1) * 255, atol=0.5)
    assert [t.object for t in samples["amos_0001_3_CT_liver"].targets] == ["liver"]
    assert samples["amos_0001_3_CT_liver"].targets[0].prompts[0] == "liver in liver CT"
    assert samples["amos_0001_3_CT_abdomen"].patient == samples["amos_0001_3_CT_liver"].patient == "amos_0001"


def test_all_fifteen_organs_by_their_numbers(amos22):
    volume = volumes(amos22, ambiguous=True)["AMOS22-CT"][0]
    masks = volume.load().masks
    label = np.asarray(nibabel.load(amos22 / "labelsTr" / "amos_0001.nii.gz").dataobj)
    assert set(masks) == {*ORGANS, *JOINED} and len(ORGANS) == 15
    for number, organ in enumerate(ORGANS, start=1):
        assert masks[organ].sum() == (label == number).sum()


def test_mistakes_are_one_line(bench, tmp_path):
    done = bench("data", "prepare", "amos", "--source", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2 and "labelsTr/amos_*.nii.gz: --source is the folder amos22" in done.stderr
