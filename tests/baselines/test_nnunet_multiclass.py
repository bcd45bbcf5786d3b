"""One nnU-Net per data set: its label maps, its refusals, and the real training on a handful of tiny images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from baselines.nnunet import Nnunet
from baselines.nnunet_data import label_map
from baselines.nnunet_multiclass import build, overlapping_pairs, refuse_overlaps
from bench.data.dataset import load_dataset, load_mask
from bench.data.splits import make_splits
from bench.errors import UserError
from bench.interface import Sample, Target
from bench.methods import make_spec
from bench.spec import NnunetBudget
from experiments import SUITES
from experiments.profiles import PROFILES

BUDGET = NnunetBudget(epochs=3, iterations_per_epoch=60, batch_size=4, patch_size=32, features=(8, 16, 16))


class Silent:
    def progress(self, phase, step, total):
        pass

    def metrics(self, step, **values):
        pass


def sample_of(folder: Path, number: int, masks: dict[str, np.ndarray], dataset: str = "made") -> Sample:
    """A sample with these masks; its image is never read."""
    targets = []
    for name, mask in masks.items():
        file = folder / f"{dataset}{number}_{name}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(file)
        targets.append(Target(name, (name,), file))
    height, width = next(iter(masks.values())).shape
    return Sample(dataset, f"{number}", f"p{number}", folder / "none.png", height, width, tuple(targets))


def add_joint_object(root: Path, name: str = "either") -> None:
    """Adds to every image of a layout an object that is all its others together."""
    for split in ("train", "test"):
        file = root / f"{split}.json"
        content = json.loads(file.read_text())
        for image in content["images"]:
            own = [row for row in content["annotations"] if row["image_id"] == image["id"]]
            masks = [load_mask(root / f"{split}_mask" / row["mask_file"]) for row in own]
            mask_file = image["file_name"].replace(".png", f"_{name}.png")
            Image.fromarray(np.any(masks, axis=0).astype(np.uint8) * 255).save(root / f"{split}_mask" / mask_file)
            row = {"id": len(content["annotations"]), "mask_file": mask_file, "sentences": [{"raw": f"{name} in toy"}]}
            content["annotations"].append(own[0] | row)
        file.write_text(json.dumps(content))


def test_overlaps_are_those_of_all_pixels_counted_one_by_one(tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for number in range(30):
        masks = {name: np.zeros((30, 30), bool) for name in "abcd"}
        for mask in masks.values():
            top, left = rng.integers(0, 20, 2)
            mask[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] = True
        masks["d"] &= ~(masks["a"] | masks["b"])
        masks["d"][0, 0] = True
        samples.append(sample_of(tmp_path, number, masks))
    wanted = []
    for one, other in (("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")):
        both, areas = 0, np.zeros(2, int)
        for sample in samples:
            files = {target.object: target.mask_file for target in sample.targets}
            pixels = [set(zip(*np.nonzero(np.asarray(Image.open(files[name]))), strict=True)) for name in (one, other)]
            areas += (len(pixels[0]), len(pixels[1]))
            both += len(pixels[0] & pixels[1])
        if both / min(areas) > 0.05:
            wanted.append((one, other) if areas[0] <= areas[1] else (other, one))
    assert 0 < len(wanted) < 6
    assert overlapping_pairs(samples) == sorted(wanted)


def test_contours_that_meet_are_no_overlap(tmp_path):
    large, small = np.zeros((2, 40, 40), bool)
    large[:20], small[18:, :20] = True, True  # 40 of 440 pixels
    rim = small.copy()
    rim[18:20, 1:] = False  # 2 of 402
    overlap = sample_of(tmp_path, 0, {"large": large, "small": small})
    assert overlapping_pairs([overlap]) == [("small", "large")]
    # 40 of 4440 pixels: it is the object's share in all images that would be lost
    others = [sample_of(tmp_path, number, {"large": large}) for number in range(10, 16)]
    assert overlapping_pairs([*others, overlap]) == [("small", "large")]
    others += [sample_of(tmp_path, number, {"small": large}) for number in range(16, 21)]
    assert overlapping_pairs([*others, overlap]) == []
    assert overlapping_pairs([sample_of(tmp_path, 1, {"large": large, "rim": rim})]) == []
    sample = sample_of(tmp_path, 2, {"large": large, "rim": rim})
    labels = label_map({target.object: str(target.mask_file) for target in sample.targets}, ["rim", "large"])
    assert (labels == 1).sum() == rim.sum(), "the smaller object has the pixels of the rim"
    np.testing.assert_array_equal(labels == 2, large & ~rim)


def test_joint_classes_are_refused_before_anything_starts(bench, toy, tmp_path):
    add_joint_object(toy)
    words = ("run", "--suite", "smoke", "--data", toy, "--methods", "nnunet_multiclass", "--dry-run")
    done = bench(*words, "--runs-dir", tmp_path / "runs")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "overlap in toy (block with either, dark disc with either)" in line
    assert "--methods nnunet (" in line
    assert not (tmp_path / "runs").exists()
    assert bench(*words[:5], "--methods", "nnunet", "--dry-run").returncode == 0


def test_every_data_set_that_overlaps_is_named(tmp_path):
    full, half = np.ones((2, 8, 8), bool)
    half[:4] = False
    rows = [sample_of(tmp_path, n, {"full": full, "half": half}, name) for n, name in enumerate(("one", "two"))]
    rows.append(sample_of(tmp_path, 2, {"upper": ~half, "lower": half}, "three"))
    splits = make_splits_of(tmp_path, rows)
    with pytest.raises(UserError, match=r"overlap in one \(half with full\); two \(half with full\): use") as error:
        refuse_overlaps(splits)
    assert "three" not in str(error.value)
    refuse_overlaps(replace(splits, train=(rows[2],), val=()))


def make_splits_of(folder: Path, samples: list[Sample]):
    from bench.data.splits import Splits

    roots = {sample.dataset: folder for sample in samples}
    return Splits(tuple(samples[:2]), tuple(samples[2:]), (), roots, False, 0, 0.2)


def test_one_model_learns_all_objects_of_a_data_set(toy, tmp_path):
    splits = make_splits([load_dataset(toy)])
    profile = PROFILES["smoke"].model_copy(update={"nnunet": BUDGET})
    method = build(make_spec(SUITES["smoke"], profile, "nnunet_multiclass", "-", 0, splits.hash))
    # an image without its second object: still a case, for the first
    train = [replace(splits.train[0], targets=splits.train[0].targets[:1]), *splits.train[1:]]
    run_dir = tmp_path / "run"
    summary = method.fit(train, splits.val, run_dir, Silent())
    (folder,) = (run_dir / "nnunet").iterdir()
    expert = json.loads((folder / "expert.json").read_text())
    assert expert["objects"] == ["block", "dark disc"]
    assert expert["cases"]["train"] == [sample.image_id for sample in train]
    assert expert["cases"]["val"] == [sample.image_id for sample in splits.val]
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "1 block": 1, "2 dark disc": 2}
    assert summary.budget.startswith("1 multi-class models x 180 iterations x 4 patches of 32x32 px")
    assert any("not annotated" in note for note in summary.notes)
    assert summary.cost["ms_15_prompts"] == pytest.approx(summary.cost["ms_1_prompt"] / 15)
    again = Nnunet(BUDGET, multiclass=True)
    again.load(run_dir)
    predictions = list(again.predict(splits.test, Silent()))
    assert [(p.sample, p.target) for p in predictions] == [(s, t) for s in splits.test for t in s.targets]
    scores = {"block": [], "dark disc": []}
    for first, second in zip(predictions[::2], predictions[1::2], strict=True):
        assert not (first.mask & second.mask).any(), "one label map, so no pixel is of both"
        assert first.seconds == second.seconds > 0
        for prediction in (first, second):
            truth = load_mask(prediction.target.mask_file)
            dice = 2 * (prediction.mask & truth).sum() / (prediction.mask.sum() + truth.sum())
            scores[prediction.target.object].append(dice)
    assert np.mean(scores["block"]) > 0.6 and np.mean(scores["dark disc"]) > 0.6, scores
