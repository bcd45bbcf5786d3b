"""The pictures and the folders of the phantom."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from bench.data.phantom import Difficulty, folder_name, generate, plan_split, render_slice
from bench.data.phantom.plan import BOTH_SIDES
from bench.data.phantom.sizes import areas_of, to_pixels
from bench.data.prompts import PROMPTS, canonical
from bench.errors import UserError
from bench.spec import PhantomSize
from experiments.paper import DATASETS, TABLE_9

TINY = PhantomSize(image_size=96, patients=3, test_patients=2, slices=2, seed=5)


def names_of(dataset):
    return [name for row, name in TABLE_9 if row == dataset]


@pytest.fixture(scope="module")
def slices():
    """data set -> [(plan, image, masks)] of 16 patients."""
    drawn = {}
    for dataset in DATASETS:
        plans = plan_split(dataset, names_of(dataset), 1, 16, 2, seed=1)
        drawn[dataset] = [(plan, *render_slice(plan, 128, 1)) for plan in plans]
    return drawn


@pytest.mark.parametrize("dataset", DATASETS)
def test_masks_have_exactly_the_planned_area_and_lie_on_tissue(slices, dataset):
    for plan, image, masks in slices[dataset]:
        assert image.dtype == np.uint8 and image.shape == (128, 128)
        assert set(plan.areas) <= set(masks) <= set(names_of(dataset))
        for name, area in plan.areas.items():
            limits = areas_of(dataset, name)
            assert masks[name].sum() == to_pixels(area, 128, limits.low, limits.high), (name, plan)
        body = image > 25
        rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
        for name, mask in masks.items():
            ys, xs = np.nonzero(mask)
            assert rows[0] < ys.min() and ys.max() < rows[-1], name
            assert columns[0] < xs.min() and xs.max() < columns[-1], name


@pytest.mark.parametrize("dataset", DATASETS)
def test_targets_of_an_image_overlap_only_where_one_is_both_sides(slices, dataset):
    for _, _, masks in slices[dataset]:
        single = [mask for name, mask in masks.items() if name not in BOTH_SIDES]
        assert np.sum(single, axis=0).max() <= 1
        for both, (left, right) in BOTH_SIDES.items():
            if both in masks:
                assert np.array_equal(masks[both], masks[left] | masks[right])


@pytest.mark.parametrize("dataset", ["AMOS22-CT", "AMOS22-MRI"])
def test_left_is_at_the_images_right(slices, dataset):
    pairs = 0
    for _, _, masks in slices[dataset]:
        centre = {name: np.nonzero(mask)[1].mean() for name, mask in masks.items()}
        for left, right in BOTH_SIDES.values():
            if left in masks and right in masks:
                assert centre[left] > centre[right]
                pairs += 1
        if "liver" in masks and "spleen" in masks:
            assert centre["liver"] < centre["spleen"]
    assert pairs > 5


@pytest.mark.parametrize("dataset", ["AMOS22-CT", "AMOS22-MRI"])
def test_only_the_place_tells_the_sides_apart(slices, dataset):
    values = {"left kidney": [], "right kidney": []}
    for _, image, masks in slices[dataset]:
        if "kidney" in masks:
            for side in values:
                values[side].append(image[masks[side]].mean())
    # an uneven coil changes a side by some, a different tissue would by more than its neighbours
    assert abs(np.mean(values["left kidney"]) - np.mean(values["right kidney"])) < 15


def test_same_arguments_same_bytes_and_other_seed_other_bytes():
    plan = plan_split("MSD-HepaticVessel", ["tumor", "vessel"], 1, 2, 2, seed=7)[1]
    assert plan == plan_split("MSD-HepaticVessel", ["tumor", "vessel"], 1, 2, 2, seed=7)[1]
    first, masks = render_slice(plan, 96, 7)
    again, same = render_slice(plan, 96, 7)
    assert first.tobytes() == again.tobytes()
    assert all(np.array_equal(masks[name], same[name]) for name in masks)
    assert render_slice(plan, 96, 8)[0].tobytes() != first.tobytes()


@pytest.mark.parametrize("dataset", DATASETS)
def test_neighbouring_slices_resemble_each_other_more_than_patients_do(slices, dataset):
    def correlation(a, b):
        return np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]

    images = [image for _, image, _ in slices[dataset]]
    same = [correlation(images[i], images[i + 1]) for i in range(0, len(images), 2)]
    other = [correlation(images[i], images[(i + 2) % len(images)]) for i in range(0, len(images), 2)]
    assert np.mean(same) > np.mean(other) + 0.05


def dice(a, b):
    return 2 * np.sum(a & b) / (a.sum() + b.sum())


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("LIDC-IDRI", "nodule"),
        ("MSD-Lung", "tumor"),
        ("MSD-HepaticVessel", "tumor"),
        ("MSD-HepaticVessel", "vessel"),
    ],
)
def test_neither_place_nor_brightness_alone_finds_a_small_target(slices, dataset, name):
    """The best threshold on the mean mask of other patients, and the best window on intensity."""
    seen = [(image, masks[name]) for _, image, masks in slices[dataset] if name in masks]
    half = len(seen) // 4 * 2  # whole patients on both sides
    mean = np.mean([mask for _, mask in seen[:half]], axis=0)
    prior = max(np.mean([dice(mean >= level, mask) for _, mask in seen[half:]]) for level in np.unique(mean[mean > 0]))
    windows = [(low, high) for low in range(0, 240, 20) for high in range(low + 20, 260, 20)]
    bright = max(np.mean([dice((i >= a) & (i < b), mask) for i, mask in seen[half:]]) for a, b in windows)
    assert prior < 0.2
    assert bright < 0.3


def test_a_nodule_stands_out_from_the_lung_around_it(slices):
    from scipy.ndimage import binary_dilation

    contrast = []
    for _, image, masks in slices["LIDC-IDRI"]:
        mask = masks["nodule"]
        ring = binary_dilation(mask, iterations=3) & ~binary_dilation(mask)
        contrast.append(float(image[mask].mean()) - float(np.median(image[ring])))
    assert np.mean(np.array(contrast) > 15) > 0.8


def test_difficulty_changes_contrast_noise_and_distractors():
    plan = plan_split("LIDC-IDRI", ["nodule"], 1, 1, 1, seed=2)[0]
    _, masks = render_slice(plan, 128, 2)
    faint, _ = render_slice(plan, 128, 2, Difficulty(contrast=0.2))
    strong, _ = render_slice(plan, 128, 2)
    assert faint[masks["nodule"]].mean() < strong[masks["nodule"]].mean()
    corner = np.s_[:8, :8]
    assert render_slice(plan, 128, 2, Difficulty(noise=4))[0][corner].std() > strong[corner].std()
    few, many = (render_slice(plan, 128, 2, Difficulty(distractors=d))[0] for d in (0.1, 2.0))
    lung = many[40:90, 15:110]
    assert (lung > 70).mean() > (few[40:90, 15:110] > 70).mean()


def test_folders_are_in_the_biomedparse_layout(tmp_path):
    seen = []
    objects = {"AMOS22-CT": ("left adrenal gland", "kidney"), "LIDC-IDRI": ("nodule",)}
    folders = generate(tmp_path / "phantom", TINY, objects, lambda done, total: seen.append((done, total)))
    assert [folder.name for folder in folders] == ["LIDC-IDRI", "AMOS22-CT"]
    assert seen == [(i, 20) for i in range(1, 21)]
    assert [path.name for path in tmp_path.iterdir()] == ["phantom"], "something temporary was left"
    patients = {}
    for folder in folders:
        for split, count in (("train", 6), ("test", 4)):
            index = json.loads((folder / f"{split}.json").read_text())
            assert "phantom" in index["info"]["description"]
            assert index["info"]["phantom"]["seed"] == 5
            assert len(index["images"]) == count
            listed = {image["file_name"] for image in index["images"]}
            assert listed == {path.name for path in (folder / split).iterdir()}
            masks = {path.name for path in (folder / f"{split}_mask").iterdir()}
            assert masks == {a["mask_file"] for a in index["annotations"]}
            assert {a["image_id"] for a in index["annotations"]} == {i["id"] for i in index["images"]}
            for annotation in index["annotations"]:
                mask = np.asarray(Image.open(folder / f"{split}_mask" / annotation["mask_file"]))
                assert mask.shape == (96, 96) and set(np.unique(mask)) == {0, 255}
                assert (mask > 0).sum() == annotation["area"]
                image = index["images"][annotation["image_id"]]
                assert image["file_name"] == annotation["file_name"]
                assert (image["height"], image["width"]) == (96, 96)
                stem = annotation["file_name"].removesuffix(".png")
                assert annotation["mask_file"] == f"{stem}_{annotation['object'].replace(' ', '+')}.png"
                assert annotation["object"] in objects[folder.name]
                sentences = [sentence["raw"] for sentence in annotation["sentences"]]
                assert sentences[0] == canonical(folder.name, annotation["object"])
                assert len(set(sentences)) == len(sentences) >= 3
                patients.setdefault((folder.name, split), set()).add(annotation["patient"])
    for folder in folders:
        assert not patients[folder.name, "train"] & patients[folder.name, "test"]


def test_a_finished_phantom_is_kept_and_an_interrupted_one_leaves_nothing(tmp_path):
    out, objects = tmp_path / "p", {"MSD-Colon": ("tumor",)}

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(out, TINY, objects, stop)
    assert list(tmp_path.iterdir()) == []
    generate(out, TINY, objects)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    content = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.png")}
    assert generate(out, TINY, objects) == [out / "MSD-Colon"]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    generate(tmp_path / "q", TINY, objects)
    assert content == {p.relative_to(tmp_path / "q"): p.read_bytes() for p in (tmp_path / "q").rglob("*.png")}
    with pytest.raises(UserError, match="not this phantom"):
        generate(out, TINY.model_copy(update={"seed": 6}), objects)


def test_two_processes_write_what_one_writes(tmp_path, monkeypatch):
    objects = {"MSD-Colon": ("tumor",)}
    generate(tmp_path / "one", TINY, objects)
    monkeypatch.setattr("bench.data.phantom.write.MANY", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    generate(tmp_path / "two", TINY, objects)
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_the_name_of_the_folder_follows_the_parameters(monkeypatch):
    name = folder_name(TINY, None)
    assert name.startswith("phantom-96px-") and len(name) == len("phantom-96px-") + 8
    assert folder_name(TINY, None) == name
    everything = {d: tuple(names_of(d)) for d in DATASETS}
    assert folder_name(TINY, everything) == name
    others = [
        folder_name(TINY.model_copy(update={"seed": 6}), None),
        folder_name(TINY, {"LIDC-IDRI": ("nodule",)}),
        folder_name(TINY, None, Difficulty(noise=2)),
    ]
    monkeypatch.setattr("bench.data.phantom.write.VERSION", 99)
    others.append(folder_name(TINY, None))
    assert len({name, *others}) == 5


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"LIDC": ("nodule",)}, "did you mean 'LIDC-IDRI'"),
        ({"MSD-Lung": ("tumour",)}, "did you mean 'tumor'"),
    ],
)
def test_unknown_names_are_one_clear_line(tmp_path, objects, message):
    with pytest.raises(UserError, match=message) as caught:
        generate(tmp_path / "p", TINY, objects)
    assert "\n" not in str(caught.value)


def test_every_target_has_several_phrases_the_canonical_first():
    assert set(PROMPTS) == set(TABLE_9)
    assert PROMPTS["MSD-Lung", "tumor"][0] == "tumor in lung CT"
    assert "neoplasm in lung CT" in PROMPTS["MSD-Lung", "tumor"]  # both examples are the paper's
    assert "right kidney in abdominal MRI" in PROMPTS["AMOS22-MRI", "right kidney"]
    for (dataset, name), phrases in PROMPTS.items():
        assert phrases[0] == canonical(dataset, name) and len(set(phrases)) == len(phrases) >= 3
        for side in ("left", "right"):
            if side in name:
                assert all(side in phrase for phrase in phrases)
    within = [{p for (d, _), ps in PROMPTS.items() if d == dataset for p in ps} for dataset in DATASETS]
    counts = [sum(len(ps) for (d, _), ps in PROMPTS.items() if d == dataset) for dataset in DATASETS]
    assert [len(phrases) for phrases in within] == counts, "one phrase names two objects of a data set"
