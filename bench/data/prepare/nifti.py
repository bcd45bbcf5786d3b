"""A NIfTI image and its label map as they are shown on screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np

from bench.data.prepare.volume import Voxels
from bench.errors import UserError
from bench.limits import check_volume

AGAIN = "download it again"


def read_labelled(
    image_file: Path,
    label_file: Path,
    objects: Mapping[str, Sequence[int]],
    known: Sequence[int] = (),
    channel: int = 0,
) -> Voxels:
    """The image and one mask per object, from the numbers of its label; an object may have several.

    Both are turned to nibabel's canonical orientation and cut into axial slices as radiologists see them; nothing is
    resampled. `numbers` counts the slices as the file does, which is how the published names do. `known` are labels
    that belong to no object; `channel` is the last index of a 4-D image.

    Raises UserError for a file that cannot be read, for shapes that differ and for a label that nobody named.
    """
    values, numbers = _read(image_file, channel)
    stored, _ = _read(label_file, 0)
    if values.shape != stored.shape:
        raise UserError(f"{label_file} is {_times(stored)} voxels, its image {_times(values)}: {AGAIN}")
    labels = stored.astype(np.uint8)
    if not np.array_equal(labels, stored):
        raise UserError(f"{label_file} holds values that are no whole numbers from 0 to 255: {AGAIN}")
    named = {0, *known, *(number for numbers_of in objects.values() for number in numbers_of)}
    strange = sorted(set(np.unique(labels).tolist()) - named)
    if strange:
        raise UserError(f"{label_file} holds the label {strange[0]}, which has no name: name it in dataset.json")
    return Voxels(values, {name: np.isin(labels, tuple(wanted)) for name, wanted in objects.items()}, numbers)


def _read(file: Path, channel: int) -> tuple[np.ndarray, tuple[int, ...]]:
    try:
        image = nibabel.load(file)
        if len(image.shape) == 4:
            image = image.slicer[..., channel]
        check_volume(image.shape, image.get_data_dtype().itemsize, file)
        values = np.asanyarray(nibabel.as_closest_canonical(image).dataobj)
        axes = nibabel.io_orientation(image.affine)
    except Exception as error:  # nibabel raises errors of gzip, zlib, numpy and its own for a broken file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file} cannot be read as a NIfTI volume ({reason}): {AGAIN}") from None
    if values.ndim != 3 or values.dtype.kind not in "iuf":
        raise UserError(f"{file} is no volume of numbers ({_times(values)} of {values.dtype}): {AGAIN}")
    upwards = next(flip for axis, flip in axes if axis == 2) > 0
    numbers = range(values.shape[2]) if upwards else reversed(range(values.shape[2]))
    return values[::-1, ::-1].T, tuple(numbers)


def _times(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape))
