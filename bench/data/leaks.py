"""The same picture on both sides of a data set, whatever its file, size or compression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from bench.data.dataset import Problem
from bench.interface import Sample

THUMBNAIL = 32  # px
# Between the nearest test and training images of different patients 0.014 was seen in head-neck CT of 128 px and 0.006
# in fundus photographs, between neighbouring slices of one patient 0.0021. Copies in JPEG at quality 40, at half or
# double size, or with a gamma of 0.9 stay below 0.001 (at 64 px below 0.0017).
SAME_PICTURE = 0.002
BLOCK = 1024  # test images compared at once


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """(1024,) float32: the grey thumbnail of 32 x 32 px with mean 0 and norm 1; zeros for an image of one grey.

    One minus the product of two is the distance of two pictures: 0 for the same one, however bright.
    """
    grey = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float32).ravel()
    values = values - values.mean()
    norm = np.linalg.norm(values)
    return values / norm if norm > 0 else values


def image_leaks(
    train: Sequence[Sample], test: Sequence[Sample], train_hashes: np.ndarray, test_hashes: np.ndarray
) -> Iterator[Problem]:
    """One problem for each test image whose nearest training image is at most SAME_PICTURE away.

    The hashes are (n, 1024) in the samples' order. Images of one patient are no case of their own: that the patient
    is on both sides says more.
    """
    if not len(train) or not len(test):
        return
    owners = {(s.dataset, s.patient) for s in train} & {(s.dataset, s.patient) for s in test}
    for start in range(0, len(test), BLOCK):
        distances = 1 - test_hashes[start : start + BLOCK] @ train_hashes.T
        nearest = distances.argmin(axis=1)
        for row, column in enumerate(nearest):
            sample, twin = test[start + row], train[column]
            distance = max(0.0, float(distances[row, column]))
            if distance > SAME_PICTURE or (sample.dataset, sample.patient) in owners:
                continue
            what = f"shows the same as train/{twin.image_file.name} of {twin.dataset} (distance {distance:.4f})"
            fix = "take one of the two out, or give both the same patient and side"
            yield Problem(sample.dataset, "image leak", str(sample.image_file), what, fix)
