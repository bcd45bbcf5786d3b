"""Fixtures of more than one test folder: a tiny data set in the BiomedParse layout, and the shared reference data."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference numbers beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder shared/ beside the checkout (real data and reference numbers)")
    return folder


def write_dataset(root: Path, patients: int = 5, test_patients: int = 2, size=(48, 40), slices: int = 2) -> Path:
    """A data set of bright squares ("block") and dark discs ("disc") on noise, `slices` images per patient."""
    rng = np.random.default_rng(0)
    height, width = size
    y, x = np.mgrid[:height, :width]
    for split, first, number in (("train", 0, patients), ("test", patients, test_patients)):
        images, annotations = [], []
        for patient in range(first, first + number):
            for place in range(slices):
                name = f"p{patient}-z{place}_toy.png"
                image = rng.normal(110, 8, (height, width))
                top, left = rng.integers(2, (height - 12, width - 12))
                masks = {"block": np.zeros((height, width), bool)}
                masks["block"][top : top + 8, left : left + 6] = True
                cy, cx = rng.integers(8, (height - 8, width - 8))
                masks["bright disc"] = ((y - cy) ** 2 + (x - cx) ** 2 <= 16) & ~masks["block"]
                image[masks["block"]] = 220
                image[masks["bright disc"]] = 20
                (root / split).mkdir(parents=True, exist_ok=True)
                (root / f"{split}_mask").mkdir(exist_ok=True)
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / name)
                images.append({"id": len(images), "file_name": name, "height": height, "width": width})
                for label, mask in masks.items():
                    mask_file = f"{Path(name).stem}_{label.replace(' ', '+')}.png"
                    Image.fromarray(mask.astype(np.uint8) * 255).save(root / f"{split}_mask" / mask_file)
                    annotations.append(
                        {
                            "id": len(annotations),
                            "image_id": len(images) - 1,
                            "mask_file": mask_file,
                            "file_name": name,
                            "split": split,
                            "sentences": [{"raw": f"{label} in toy image"}, {"raw": f"the {label}"}],
                            "area": int(mask.sum()),
                            "patient": f"p{patient}",
                        }
                    )
        content = {"info": {"description": "toy"}, "images": images, "annotations": annotations}
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def toy(tmp_path) -> Path:
    """A fresh copy a test may break."""
    return write_dataset(tmp_path / "toy")
