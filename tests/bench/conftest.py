"""A data set in the BiomedParse layout, small enough to run every trial of a test in a second."""

import json

import numpy as np
import pytest
from PIL import Image


def write_dataset(root, patients=5, test_patients=2, height=20, width=30):
    """Two objects an image: a square that stays where it is, and a dot that moves with the patient."""
    for split, count in (("train", patients), ("test", test_patients)):
        (root / split).mkdir(parents=True)
        (root / f"{split}_mask").mkdir()
        images, annotations = [], []
        for patient in range(count):
            stem = f"{split}{patient}-z0_CT_chest"
            square = np.zeros((height, width), bool)
            square[4:12, 5:15] = True
            dot = np.zeros((height, width), bool)
            dot[14:16, 3 + patient : 6 + patient] = True
            image = (40 + 100 * square + 60 * dot).astype(np.uint8)
            Image.fromarray(image).save(root / split / f"{stem}.png")
            images.append({"id": patient, "file_name": f"{stem}.png", "height": height, "width": width})
            for name, mask in (("large square", square), ("dot", dot)):
                mask_file = f"{stem}_{name.replace(' ', '+')}.png"
                Image.fromarray((255 * mask).astype(np.uint8)).save(root / f"{split}_mask" / mask_file)
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": patient,
                        "mask_file": mask_file,
                        "file_name": f"{stem}.png",
                        "split": split,
                        "sentences": [{"raw": f"{name} in chest CT"}, {"raw": name}],
                        "patient": f"{split}-{patient}",
                        "object": name,
                    }
                )
        text = json.dumps({"info": {"description": "squares"}, "images": images, "annotations": annotations})
        (root / f"{split}.json").write_text(text)
    return root


@pytest.fixture
def squares(tmp_path):
    """The folder of such a data set, named "squares": 5 + 2 patients, 20 x 30 px."""
    return write_dataset(tmp_path / "data" / "squares")
