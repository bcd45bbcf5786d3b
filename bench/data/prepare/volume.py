"""What a source says of each of its scans; `write.py` makes the images and masks from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Voxels:
    """The pixels of one scan and of its objects.

    values: (slices, rows, columns) as shown on screen (the patient's right on the left, front up), HU or MR units.
    masks: object -> (slices, rows, columns) bool.
    numbers: the slice number used in names, one per slice.
    """

    values: np.ndarray
    masks: dict[str, np.ndarray]
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Volume:
    """One scan of a raw data set: all that is needed to write its slices."""

    id: str  # unique in the data set; images are named <id>_<slice>_<modality>_<site>.png
    patient: str
    modality: str  # "CT" or "MRI"
    site: str  # "lung", "abdomen", ... as in bench/data/prompts.py SITES
    window: str | None  # a name of bench.data.images.WINDOWS; None: 0.5 to 99.5 percentile of the positive voxels
    split: str  # "train" or "test"
    files: tuple[Path, ...]  # every source file, hashed into the manifest
    load: Callable[[], Voxels]  # reads the pixels; raises UserError for what cannot be read
