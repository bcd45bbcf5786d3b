import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from bench.data.dataset import load_dataset
from bench.data.prepare.msd import dataset_name, volumes
from bench.errors import UserError

TASK = "Task04_Hippocampus"
LABELS = {"anterior hippocampus": 1, "posterior hippocampus": 2}


@pytest.fixture(scope="module")
def hippocampus(shared, bench, tmp_path_factory):
    """(source, data set folder) of the real volumes, every labelled voxel kept."""
    source = shared / "data" / "msd_raw" / TASK
    out = tmp_path_factory.mktemp("msd")
    words = ("--source", source, "--out", out, "--size", 128, "--min-share", 0, "--workers", 2)
    done = bench("data", "prepare", "msd", *words)
    assert done.returncode == 0, done.stderr
    return source, out / "MSD-Hippocampus"


def back(picture: np.ndarray, columns: int, rows: int, codes: tuple[str, ...]) -> np.ndarray:
    """The middle of every voxel of a picture, as (x, y) of the file: undoes size, padding and orientation."""
    side, size = max(rows, columns), len(picture)
    plane = np.zeros((columns, rows), picture.dtype)
    for x in range(columns):
        for y in range(rows):
            column = columns - 1 - x if codes[0] == "R" else x
            row = rows - 1 - y if codes[1] == "A" else y
            at = [(side - rows) // 2 + row, (side - columns) // 2 + column]
            plane[x, y] = picture[tuple(int((place + 0.5) * size / side) for place in at)]
    return plane


def test_real_masks_are_the_labels_slice_for_slice(hippocampus):
    source, folder = hippocampus
    masks = {path.name: path for path in folder.glob("t*_mask/*.png")}
    expected = 0
    for file in sorted(source.glob("labelsTr/*.nii.gz"))[::4]:
        image = nibabel.load(file)
        label, codes = np.asarray(image.dataobj), nibabel.aff2axcodes(image.affine)
        assert codes[2] == "S"
        for number in range(label.shape[2]):
            for name, value in LABELS.items():
                wanted = label[:, :, number] == value
                path = masks.get(f"{file.name[:-7]}_{number}_MRI_brain_{name.replace(' ', '+')}.png")
                assert (path is not None) == wanted.any()
                if path is not None:
                    expected += 1
                    np.testing.assert_array_equal(
                        back(np.asarray(Image.open(path)) > 0, *label.shape[:2], codes), wanted
                    )
    assert expected > 200


def test_real_images_are_the_scans(hippocampus):
    """Grey follows the voxels: the middles of the voxels, back in the file's order, correlate with them."""
    source, folder = hippocampus
    for path in sorted([*folder.glob("train/*.png"), *folder.glob("test/*.png")])[::40]:
        stem = path.stem.split("_")
        image = nibabel.load(source / "imagesTr" / f"{stem[0]}_{stem[1]}.nii.gz")
        plane = np.asarray(image.dataobj)[:, :, int(stem[2])].astype(float)
        codes = nibabel.aff2axcodes(image.affine)
        grey = back(np.asarray(Image.open(path)), *plane.shape, codes).astype(float)
        assert np.corrcoef(grey.ravel(), plane.ravel())[0, 1] > 0.98


def test_prepared_data_pass_the_check_and_have_patients(hippocampus, bench):
    _, folder = hippocampus
    done = bench("data", "check", folder)
    assert done.returncode == 0, done.stdout
    dataset = load_dataset(folder)
    sides = [{sample.patient for sample in samples} for samples in (dataset.train, dataset.test)]
    assert [len(side) for side in sides] == [32, 8]
    target = dataset.train[0].targets[0]
    assert target.prompts == (f"{target.object} in brain MRI",)


def test_training_takes_what_was_prepared(task, bench, tmp_path):
    words = ("--source", task(6), "--out", tmp_path / "data", "--size", 64, "--keep-empty", 1)
    assert bench("data", "prepare", "msd", *words).returncode == 0
    words = ("--data", tmp_path / "data", "--methods", "location_prior", "--executor", "local")
    done = bench(
        "run", "--suite", "smoke", *words, "--runs-dir", tmp_path / "runs", MLFLOW_TRACKING_URI="http://127.0.0.1:9"
    )
    assert done.returncode == 0, done.stderr
    assert "MSD-Lung" in done.stdout


def test_the_published_names_are_ours(task, bench, tmp_path, shared):
    """Data set, image and object names as in the authors' list."""
    listed = shared / "data" / "biomedparse_results" / "MSD" / "Task06_Lung" / "mask_stats.csv"
    source = task(5)
    description = json.loads((source / "dataset.json").read_text())
    for row in description["training"]:  # numbers from 1, as the task has them
        for kind in row:
            old = source / row[kind]
            row[kind] = row[kind].replace("_004", "_044").replace("_000", "_005").replace("_002", "_074")
            old.rename(source / row[kind])
    (source / "dataset.json").write_text(json.dumps(description))
    done = bench(
        "data", "prepare", "msd", "--source", source, "--out", tmp_path / "out", "--official", listed, "--size", 48
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "MSD-Lung"
    manifest = json.loads((folder / "manifest.json").read_text())
    sides = {name: record["split"] for name, record in manifest["volumes"].items()}
    published = {line.split(",")[1].split("_CT")[0].rsplit("_", 1)[0]: line.split(",")[0] for line in listed.open()}
    numbers = ("001", "003", "005", "044", "074")
    assert sides == {f"lung_{n}_CT_lung": published[f"lung_{n}"] for n in numbers if f"lung_{n}" in published}
    assert set(sides.values()) == {"train", "test"}
    assert manifest["skipped"] == {
        f"lung_{n}": "not in mask_stats.csv" for n in numbers if f"lung_{n}" not in published
    }
    assert load_dataset(folder).train[0].targets[0].object == "tumor"


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "cancer", "2": "vessel"},
        {"background": 0, "cancer": 1, "vessel": 2},
        {"background": 0, "Tumour": [1], "Vessel": [2]},
    ],
)
def test_all_forms_of_labels(task, labels):
    voxels = volumes(task(2, labels))[0].load()
    assert {name: int(mask.sum()) for name, mask in voxels.masks.items()} == {"tumor": 6 * 7 * 3, "vessel": 1}


def test_labels_of_one_object_are_joined(task):
    voxels = volumes(task(2, {"0": "background", "1": "cancer", "2": "tumour"}))[0].load()
    assert {name: int(mask.sum()) for name, mask in voxels.masks.items()} == {"tumor": 6 * 7 * 3 + 1}


def test_a_label_without_a_name_leaves_the_volume_out(task):
    with pytest.raises(UserError, match=r"lung_000\.nii\.gz holds the label 2, which has no name"):
        volumes(task(2, {"0": "background", "1": "cancer"}))[0].load()


@pytest.mark.parametrize("affine", ["RAS", "LPS", "LAI"])
def test_patients_right_is_left_and_front_is_up(task, affine):
    """A voxel at x = 14, y = 3 of the file, whatever the file's axes mean."""
    voxels = volumes(task(2, affine=affine))[0].load()
    slice_, row, column = np.argwhere(voxels.masks["vessel"])[0]
    assert voxels.numbers[slice_] == 5
    assert column == (19 - 14 if affine[0] == "R" else 14)
    assert row == (23 - 3 if affine[1] == "A" else 3)
    assert voxels.values.shape == (7, 24, 20)
    assert voxels.numbers[0] == (0 if affine[2] == "S" else 6)  # the first slice is the lowest


def test_channels_by_name(task):
    source = task(2, modality={"0": "FLAIR", "1": "T1w"}, name="Task01_BrainTumour")
    stored = np.asarray(nibabel.load(source / "imagesTr" / "lung_000.nii.gz").dataobj)
    for name, index in ((None, 0), ("flair", 0), ("T1w", 1)):
        volume = volumes(source, name)[0]
        assert (volume.modality, volume.site, volume.window) == ("MRI", "brain", None)
        np.testing.assert_array_equal(volume.load().values, stored[::-1, ::-1, :, index].T)
    with pytest.raises(UserError, match="unknown channel 'T1': did you mean 'T1w'"):
        volumes(source, "T1")


def test_names_of_tasks(task, tmp_path):
    assert dataset_name(task(2, name="Task08_HepaticVessel")) == "MSD-HepaticVessel"
    assert dataset_name(task(2, name="unpacked")) == "MSD-Lung"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": {"a": "CT"}}, "'modality' has the keys a"),
        ({"training": ["a.nii.gz"]}, "'training' is no list of"),
        ({"training": {"image": "a"}}, "'training' is no list of"),
    ],
)
def test_a_description_of_another_form(task, change, message):
    source = task(2)
    description = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps(description | change))
    with pytest.raises(UserError, match=message):
        volumes(source)


def test_mistakes_are_one_line(task, bench, tmp_path):
    source = task(2)
    done = bench("data", "prepare", "msd", "--source", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2 and "dataset.json is missing: --source is the folder of one task" in done.stderr
    done = bench("data", "prepare", "msd", "--source", source, "--out", tmp_path / "out", "--window", "lnug")
    assert done.returncode == 2 and "unknown window 'lnug': did you mean 'lung'?" in done.stderr
    (source / "labelsTr" / "lung_001.nii.gz").unlink()
    done = bench("data", "prepare", "msd", "--source", source, "--out", tmp_path / "out")
    assert done.returncode == 2 and "lung_001.nii.gz is missing, though the data set lists it" in done.stderr
    assert "Traceback" not in done.stderr
