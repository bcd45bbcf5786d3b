import csv
from pathlib import Path

import pytest

from bench.data.prepare.official import official_sides
from bench.data.prepare.sides import split_by_lists, split_by_patient, without_leaks
from bench.data.prepare.volume import Volume
from bench.errors import UserError

LEAKS = {f"LIDC-IDRI-{number}" for number in ("0132", "0151", "0315", "0332", "0484")}


def scans(*pairs):
    return [Volume(id, patient, "CT", "lung", "lung", "train", (), Path) for id, patient in pairs]


@pytest.fixture
def listing(tmp_path):
    def write(text):
        file = tmp_path / "mask_stats.csv"
        file.write_text(text)
        return file

    return write


@pytest.mark.parametrize("name", ["LIDC-IDRI", "MSD/Task06_Lung", "MSD/Task07_Pancreas", "MSD/Task08_HepaticVessel"])
def test_the_published_lists(shared, name):
    file = shared / "data" / "biomedparse_results" / name / "mask_stats.csv"
    with file.open() as handle:
        expected = {row["fname"][: row["fname"].rindex("_")]: row["split"] for row in csv.DictReader(handle)}
    assert official_sides(file) == expected
    assert len(set(expected.values())) == 2


def test_the_leaks_of_the_published_lists(shared):
    """LIDC's lists have five patients on both sides: none of their training scans is kept."""
    file = shared / "data" / "biomedparse_results" / "LIDC-IDRI" / "mask_stats.csv"
    ids = sorted({stem.rsplit("_", 3)[0] for stem in official_sides(file)})
    kept, left_out = split_by_lists(scans(*((id, id.rsplit("_", 1)[0]) for id in ids)), file)
    assert {id.rsplit("_", 1)[0] for id in left_out} == LEAKS
    sides = [{scan.patient for scan in kept if scan.split == side} for side in ("train", "test")]
    assert not sides[0] & sides[1] and sides[1] >= LEAKS
    assert len(kept) + len(left_out) == len(ids) == 802


def test_volumes_outside_the_lists_are_left_out_by_name(listing):
    file = listing("split,fname\ntrain,a_1_7_CT_lung_left+lung.png\ntest,b_2_7_CT_lung_nodule.png\n")
    kept, left_out = split_by_lists(scans(("a_1", "a"), ("b_2", "b"), ("c_3", "c")), file)
    assert [(scan.id, scan.split) for scan in kept] == [("a_1", "train"), ("b_2", "test")]
    assert left_out == {"c_3": "not in mask_stats.csv"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,split\n", "has no column 'fname'"),
        ("split,fname\nval,a_1_7_CT_lung_nodule.png\n", "'val' is no side"),
        ("split,fname\ntrain,a_1_7_CT_lung_x.png\ntest,a_1_7_CT_lung_y.png\n", "a_1_7_CT_lung is in train and in test"),
        ("", "cannot be read as CSV"),
    ],
)
def test_what_is_no_list_is_refused(listing, text, message):
    with pytest.raises(UserError, match=message):
        official_sides(listing(text))
    with pytest.raises(UserError, match="does not exist"):
        official_sides(Path("nowhere.csv"))


def test_one_in_five_patients_is_for_test():
    many = scans(*((f"s{i}", f"p{i // 2}") for i in range(100)))
    sides = [{s.id: s.split for s in split_by_patient(many, "set", seed)} for seed in range(3)]
    for side in sides:
        assert sum(split == "test" for split in side.values()) == 20
        assert all(side[f"s{i}"] == side[f"s{i + 1}"] for i in range(0, 100, 2))
    assert sides[0] != sides[1] != sides[2]
    assert sides[0] == {s.id: s.split for s in split_by_patient(many[::-1], "set", 0)}
    with pytest.raises(UserError, match="set has 1 patient: train and test need one each"):
        split_by_patient(many[:2], "set")


def test_without_leaks_keeps_the_test_scans():
    found = scans(("a", "p"), ("b", "p"), ("c", "q"))
    found[1] = Volume("b", "p", "CT", "lung", "lung", "test", (), Path)
    kept, leaks = without_leaks(found)
    assert [scan.id for scan in kept] == ["b", "c"] and leaks == {"a": "patient p is in test too"}
