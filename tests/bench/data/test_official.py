"""The authors' lists: by themselves, and a data set arranged by them."""

import csv
import json
import shutil

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.data.dataset import load_dataset
from bench.data.official import image_of, leaking_images, patient_of, read_list
from bench.data.splits import load_splits, split_folders
from bench.errors import UserError

LEAKS_OF_LIDC = {f"LIDC-IDRI-{number}" for number in ("0132", "0151", "0315", "0332", "0484")}


def bench(*words):
    result = CliRunner().invoke(cli.app, ["data", "split", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize(
    ("stem", "patient"),
    [
        ("LIDC-IDRI-0078_1_23_CT_lung", "LIDC-IDRI-0078"),
        ("lung_001_231_CT_lung", "lung_001"),
        ("hepaticvessel_458_143_CT_liver", "hepaticvessel_458"),
        ("amos_0233_160_CT_abdomen", "amos_0233"),
    ],
)
def test_patients_by_the_authors_names(stem, patient):
    assert patient_of(stem) == patient
    assert image_of(f"{stem}_left+kidney.png") == stem


def test_lidcs_lists_have_five_patients_on_both_sides(shared):
    file = shared / "data" / "biomedparse_results" / "LIDC-IDRI" / "mask_stats.csv"
    with file.open() as handle:  # counted once more, without the code under test
        rows = [(row["split"], row["fname"]) for row in csv.DictReader(handle)]
    found = leaking_images(read_list(file))
    assert found.keys() == LEAKS_OF_LIDC
    for patient, counts in found.items():
        for side in ("train", "test"):
            assert counts[side] == sum(s == side and name.startswith(f"{patient}_") for s, name in rows) > 0
    output = " ".join(bench("--official", file).split())
    assert "5 patients are in train and in test: " + ", ".join(sorted(LEAKS_OF_LIDC)) in output
    assert f"their training images ({sum(c['train'] for c in found.values())}) are left out by default" in output
    assert f"train {7389:,} 641 {7389:,}" in output and f"test {1733:,} 159 {1733:,}" in output


def test_the_lists_of_msd_have_none(shared):
    files = sorted((shared / "data" / "biomedparse_results" / "MSD").glob("*/mask_stats.csv"))
    assert len(files) == 4
    words = [word for file in files for word in ("--official", file)]
    assert bench(*words).count("no patient is in train and in test") == 4


def write_list(file, sides):
    """`sides`: mask name -> side."""
    with file.open("w", newline="") as handle:
        csv.writer(handle).writerows([("split", "fname", "mask_area"), *((s, name, 1) for name, s in sides.items())])
    return file


def masks_of(folder):
    return sorted(file.name for side in ("train", "test") for file in (folder / f"{side}_mask").glob("*.png"))


@pytest.fixture
def listed(toy, tmp_path):
    """The toy set and a list: patients p0 to p3 in train, p4 and one slice of p3 in test, p5 in train, p6 in none."""
    sides = {}
    for name in masks_of(toy):
        patient = name[:2]
        if patient != "p6":
            sides[name] = "test" if patient == "p4" or name.startswith("p3-z1") else "train"
    del sides["p0-z0_toy_block.png"]
    sides["p8-z0_toy_block.png"] = "test"
    return toy, write_list(tmp_path / "mask_stats.csv", sides)


def test_sides_follow_the_list_and_leaks_leave_train(listed, tmp_path):
    folder, file = listed
    splits = split_folders([folder], official=[file])
    names = {side: {sample.image_id[:5] for sample in samples} for side, samples in splits.sides().items()}
    assert names["test"] == {"p4-z0", "p4-z1", "p3-z1"}
    assert names["train"] | names["val"] == {f"p{p}-z{z}" for p in (0, 1, 2, 5) for z in (0, 1)}
    assert not {n[:2] for n in names["train"]} & {n[:2] for n in names["val"]}
    provenance = splits.provenance["toy"]
    assert (provenance.leaking_patients, provenance.leaks_kept, provenance.images_left_out) == (["p3"], False, 1)
    assert provenance.unlisted == ["p6-z0_toy", "p6-z1_toy"]
    assert provenance.unmatched == ["p8-z0_toy_block.png"]
    assert provenance.masks_left_out == ["p0-z0_toy_block.png"]
    (partly,) = [s for side in splits.sides().values() for s in side if s.image_id == "p0-z0_toy"]
    assert [target.object for target in partly.targets] == ["dark disc"]


def test_leaks_are_kept_on_request_and_the_split_is_another(listed, tmp_path):
    folder, file = listed
    without = split_folders([folder], official=[file])
    kept = split_folders([folder], official=[file], keep_leaks=True)
    assert kept.test == without.test and kept.hash != without.hash
    patients = {s.patient for s in (*kept.train, *kept.val)} & {s.patient for s in kept.test}
    assert patients == {"p3"}
    assert kept.provenance["toy"].leaks_kept and kept.provenance["toy"].images_left_out == 0


@pytest.mark.parametrize("option", [(), ("--keep-leaks",)])
def test_the_command_reports_writes_and_reads_back(listed, tmp_path, option):
    folder, file = listed
    out = tmp_path / "splits.json"
    output = bench(folder, "--official", file, "--out", out, *option).replace("\n", " ")
    content = json.loads(out.read_text())
    assert f"split {content['hash']} (seed 0)" in output
    assert "toy: 1 patient is in train and in test: p3" in output
    assert ("training images (1) are left out" in output) == (not option)
    assert ("kept in both, as asked" in output) == bool(option)
    assert "toy: images in no list, left out: 2 (p6-z0_toy, p6-z1_toy)" in output
    assert "toy: listed masks without a file here: 1 (p8-z0_toy_block.png)" in output
    assert content["provenance"]["toy"]["leaking_patients"] == ["p3"]
    expected = split_folders([folder], official=[file], keep_leaks=bool(option))
    assert load_splits(out) == expected and content["hash"] == expected.hash
    file.unlink()  # splits.json needs the list no more
    assert load_splits(out) == expected


def test_without_lists_a_leaking_patient_leaves_train(toy, tmp_path):
    content = json.loads((toy / "test.json").read_text())
    for annotation in content["annotations"]:
        annotation["patient"] = "p0"
    (toy / "test.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="patient 'p0' is in train and in test"):
        load_dataset(toy)
    out = tmp_path / "splits.json"
    assert "their training images (2) are left out" in bench(toy, "--out", out).replace("\n", " ")
    splits = load_splits(out)
    assert "p0" not in {s.patient for s in (*splits.train, *splits.val)}
    assert {s.patient for s in splits.test} == {"p0"}


def test_patients_without_a_name_in_the_json_are_known_by_the_authors_names(toy, tmp_path):
    for split in ("train", "test"):
        text = (toy / f"{split}.json").read_text()
        for number in range(7):  # p3-z1_toy -> LIDC-IDRI-0003_1_1_CT_lung
            text = text.replace(f"p{number}-z0_toy", f"LIDC-IDRI-000{number}_1_0_CT_lung")
            text = text.replace(f"p{number}-z1_toy", f"LIDC-IDRI-000{number}_1_1_CT_lung")
        content = json.loads(text)
        for annotation in content["annotations"]:
            del annotation["patient"]
        (toy / f"{split}.json").write_text(json.dumps(content))
        for place in (split, f"{split}_mask"):
            for path in (toy / place).iterdir():
                name = path.name.replace("_toy", "_CT_lung").replace("-z", "_1_")
                path.rename(path.with_name(f"LIDC-IDRI-000{name[1:]}"))
    sides = {name: "test" if "0003_1_1" in name or "0006" in name else "train" for name in masks_of(toy)}
    out = tmp_path / "splits.json"
    output = bench(toy, "--official", write_list(tmp_path / "mask_stats.csv", sides), "--out", out)
    assert "1 patient is in train and in test: LIDC-IDRI-0003" in output.replace("\n", " ")
    assert {s.patient for s in load_splits(out).test} == {"LIDC-IDRI-0003", "LIDC-IDRI-0006"}


def same_image_name_twice(folder, file):
    """Patient p5's image in test/ and its masks take the name of p0's in train/."""
    for path in (*folder.glob("test/p5-z0_*"), *folder.glob("test_mask/p5-z0_*")):
        path.rename(path.with_name(path.name.replace("p5-z0", "p0-z0")))
    listing = folder / "test.json"
    listing.write_text(listing.read_text().replace("p5-z0", "p0-z0"))
    return [file]


def foreign_list(folder, file):
    return [write_list(file, {"lung_001_231_CT_lung_tumor.png": "train"})]


def two_lists(folder, file):
    return [file, shutil.copy(file, file.with_name("again.csv"))]


def no_list(folder, file):
    file.write_text("name,side\na,b\n")
    return [file]


def missing_list(folder, file):
    return [file.with_name("nowhere.csv")]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (same_image_name_twice, r"p0-z0_toy is in train/ and in test/"),
        (foreign_list, r"lists masks like lung_001_231_CT_lung_tumor.png, the data sets \(toy\) hold masks like p0-"),
        (two_lists, "both list masks of toy: leave one out"),
        (no_list, "no column 'split'"),
        (missing_list, "nowhere.csv does not exist"),
    ],
)
def test_lists_that_cannot_be_used_are_one_line(listed, damage, message):
    folder, file = listed
    with pytest.raises(UserError, match=message):
        split_folders([folder], official=damage(folder, file))


def test_nothing_to_split_is_said():
    with pytest.raises(UserError, match="name data set folders, or lists with --official"):
        bench()
