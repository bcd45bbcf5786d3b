"""A Decathlon task made by the tests, and the bytes of a folder."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

AFFINES = {"RAS": np.diag([1.0, 1, 2, 1]), "LPS": np.diag([-1.0, -1, 2, 1]), "LAI": np.diag([-1.0, 1, -2, 1])}


def save_nifti(file: Path, array: np.ndarray, affine: np.ndarray = AFFINES["RAS"]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), file)


@pytest.fixture
def task(tmp_path):
    """make(patients, labels=..., modality=...) -> a task's folder: boxes of the labels 1 and 2 in noise, in HU."""

    def make(patients=5, labels=None, modality=None, name="Task06_Lung", affine="RAS"):
        root = tmp_path / name
        rng = np.random.default_rng(0)
        channels = modality or {"0": "CT"}
        listed = []
        for patient in range(patients):
            shape = (20, 24, 7) + ((len(channels),) if len(channels) > 1 else ())
            label = np.zeros(shape[:3], np.uint8)
            label[4:10, 5 + patient : 12 + patient, 2:5] = 1
            label[14, 3, 5] = 2
            image = rng.normal(-300, 200, shape).astype(np.int16)
            file = f"lung_{patient:03}.nii.gz"
            save_nifti(root / "imagesTr" / file, image, AFFINES[affine])
            save_nifti(root / "labelsTr" / file, label, AFFINES[affine])
            listed.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
        labels = labels or {"0": "background", "1": "cancer", "2": "vessel"}
        description = {"name": "Lung", "modality": channels, "labels": labels, "training": listed}
        (root / "dataset.json").write_text(json.dumps(description))
        return root

    return make


@pytest.fixture
def content():
    """content(folder) -> every file's bytes by its path in it, but for the lock."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read
