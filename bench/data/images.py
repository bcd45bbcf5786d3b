"""One 2-D picture out of what a user has: PNG, JPEG, a slice of a NIfTI volume, a frame of a DICOM file."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bench.data.dataset import IMAGE_FORMATS, load_image
from bench.errors import UserError, unknown_name
from bench.limits import DEFLATE_RATIO, MAX_VOXELS, check_pixels, check_volume

if TYPE_CHECKING:
    import pydicom

# name -> (lowest, highest) HU. The first six are BiomedParse's, whose training images were made with them.
WINDOWS = {
    "abdomen": (-150, 250),
    "lung": (-1000, 1000),
    "pelvis": (-55, 200),
    "liver": (-25, 230),
    "colon": (-68, 187),
    "pancreas": (-100, 200),
    "mediastinum": (-125, 225),
    "bone": (-500, 1300),
    "brain": (0, 80),
}
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # of a volume in nibabel's canonical (RAS+) orientation
AIR_HU = -500  # only CT has values below
AS_THEY_ARE = "8-bit values as they are"


@dataclass(frozen=True)
class _Plane:
    """A picture before it is grey: (H, W) values, or (H, W, 3) uint8 colours that stay as they are.

    `window` is the lowest and highest value to show and what to call them, where the file says so.
    """

    values: np.ndarray
    place: str = ""
    window: tuple[float, float, str] | None = None
    inverted: bool = False


def read_image(
    file: Path, index: int | None = None, axis: str | None = None, window: str | None = None
) -> tuple[np.ndarray, str]:
    """The picture in `file` as (H, W, 3) uint8, and in a few words which slice it is and how it was windowed.

    A volume is turned to nibabel's canonical orientation and cut across `axis` (a name of AXES, axial by default)
    at `index` (from 0; from feet to head, back to front, left to right; the middle by default). The slice is shown
    as radiologists do: head or front up, the patient's right on the picture's left (sagittal: the front on the
    left). Its pixels are the voxels: nothing is resampled. `index` is also the frame of a multi-frame DICOM.

    `window` is a name of WINDOWS or "CENTER,WIDTH". Without it: 8 bits of a picture or DICOM as they are; a DICOM's
    own first window; CT in the abdominal window; else from the 0.5th to the 99.5th percentile of the positive values.

    Raises UserError for a file that cannot be read and for an option that does not fit it.
    """
    if not file.is_file():
        what = "is a folder: name one file in it" if file.is_dir() else "does not exist: name an image file"
        raise UserError(f"{file} {what}")
    shown = None if window is None else (*parse_window(window), f"window {window}")
    if file.name.lower().endswith((".nii", ".nii.gz")):
        plane = _read_nifti(file, axis or "axial", index)
    elif axis is not None:
        raise UserError(f"--axis {axis}: {file} is no NIfTI volume; leave the option out")
    elif _is_dicom(file):
        plane = _read_dicom(file, index)
    elif index is not None:
        raise UserError(f"--slice {index}: {file} is a single picture; leave the option out")
    else:
        plane = _read_picture(file)
    if plane.values.ndim == 3:
        if window is not None:
            raise UserError(f"--window {window}: {file} has 8-bit colours, shown as they are; leave the option out")
        return plane.values, ", ".join(filter(None, (plane.place, AS_THEY_ARE)))
    if not np.isfinite(plane.values).any():
        raise UserError(f"{file} holds no number{f' at {plane.place}' if plane.place else ''}: choose another slice")
    low, high, how = shown or plane.window or _default_window(plane.values)
    grey = to_grey(plane.values, low, high)
    grey = 255 - grey if plane.inverted else grey
    return np.repeat(grey[..., None], 3, axis=2), ", ".join(filter(None, (plane.place, how)))


def parse_window(text: str) -> tuple[float, float]:
    """ "lung" or "-600,1500" (center, width) -> (lowest, highest) value. Raises UserError."""
    if text in WINDOWS:
        return WINDOWS[text]
    if not any(character.isdigit() for character in text):
        raise unknown_name("window", text, WINDOWS)
    try:
        center, width = (float(part) for part in text.split(","))
    except ValueError:
        center = width = math.nan
    if not (math.isfinite(center) and 0 < width < math.inf):
        names = ", ".join(WINDOWS)
        raise UserError(f"--window '{text}' is no center and width: write --window 40,400, or a name: {names}")
    return center - width / 2, center + width / 2


def to_window(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W) numbers -> (H, W) float32 from 0 (`low` and below) to 255 (`high` and above), not rounded; NaN is 0.

    All 0 where `high` is not above `low`.
    """
    if not high > low:
        return np.zeros(values.shape, np.float32)
    share = (values.astype(np.float32) - low) / (high - low)
    return 255 * np.nan_to_num(share, nan=0.0).clip(0, 1)


def to_grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """`to_window` in whole numbers: (H, W) uint8."""
    return np.rint(to_window(values, low, high)).astype(np.uint8)


def _default_window(values: np.ndarray) -> tuple[float, float, str]:
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if not positive.size:
        return float(finite.min()), float(finite.max()), "from the lowest to the highest value"
    low, high = map(float, np.percentile(positive, (0.5, 99.5)))
    return low, high, f"0.5th to 99.5th percentile ({low:.4g} to {high:.4g})"


def _ct_window(name: str = "abdomen") -> tuple[float, float, str]:
    low, high = WINDOWS[name]
    return low, high, f"CT in window {name} ({low} to {high} HU)"


def _read_picture(file: Path) -> _Plane:
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            check_pixels(*image.size)
            if image.mode[0] in "IF":  # more than 8 bits of grey
                return _Plane(np.asarray(image))
    except Exception as error:  # Pillow raises whatever a broken file leads it to
        raise _unreadable(file, "an image", error) from None
    return _Plane(load_image(file))


def _read_nifti(file: Path, axis: str, index: int | None) -> _Plane:
    import nibabel

    try:
        image = nibabel.squeeze_image(nibabel.load(file))
        check_volume(image.shape, image.get_data_dtype().itemsize, file)
        if image.ndim == 2:
            image = nibabel.Nifti1Image(np.asanyarray(image.dataobj)[..., None], image.affine)
        if image.ndim == 3 and image.get_data_dtype().kind in "iuf":
            volume = np.asanyarray(nibabel.as_closest_canonical(image).dataobj)
    except Exception as error:  # nibabel raises errors of gzip, zlib, numpy and its own for a broken file
        raise _unreadable(file, "a NIfTI volume", error) from None
    if image.ndim != 3:
        shape = " x ".join(map(str, image.shape))
        raise UserError(f"{file} has {image.ndim} dimensions ({shape}), not 3: save one of its volumes by itself")
    if image.get_data_dtype().kind not in "iuf":
        raise UserError(f"{file} holds {image.get_data_dtype()}, not one number a voxel: save it as numbers")
    index = _checked(index, volume.shape[AXES[axis]], file, f"{axis} slice")
    plane = np.take(volume, index, AXES[axis])[::-1, ::-1].T
    place = f"{axis} slice {index} of 0 to {volume.shape[AXES[axis]] - 1}"
    return _Plane(plane, place, _ct_window() if np.nanmin(volume) < AIR_HU else None)


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as handle:
        return handle.read(132)[128:] == b"DICM" or file.suffix.lower() in (".dcm", ".dicom", ".ima")


def _read_dicom(file: Path, index: int | None) -> _Plane:
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oddities of the header that do not hinder the reading
        try:
            header = read_dicom(file)
            frames = int(header.get("NumberOfFrames") or 1)
            if index is not None and frames == 1:
                raise UserError(f"--slice {index}: {file} has one frame; leave the option out")
            index = _checked(index, frames, file, "frame")
            stored = pixel_array(header, index=index)
            _lay_flat(header, index)
            if header.PhotometricInterpretation == "PALETTE COLOR":
                stored = apply_color_lut(stored, header)
            grey = stored.ndim == 2
            values = apply_modality_lut(stored, header) if grey else stored
            window = _header_window(header) if grey else None
        except UserError:
            raise
        except Exception as error:  # pydicom raises whatever a broken header leads to
            if "missing dependencies" in str(error):
                name = header.file_meta.TransferSyntaxUID.name
                fix = "pip install pylibjpeg pylibjpeg-libjpeg, or save it uncompressed"
                raise UserError(
                    f"{file}: its pixels are compressed ({name}), no decoder for that here: {fix}"
                ) from None
            raise _unreadable(file, "a DICOM image", error) from None
    place = f"frame {index} of 0 to {frames - 1}" if frames > 1 else ""
    if not grey:
        # 16-bit colours and palettes fill their range
        return _Plane((values >> 8 * (values.dtype.itemsize - 1)).astype(np.uint8), place)
    if window is None and header.get("Modality") == "CT":
        window = _ct_window()
    if window is None and stored.dtype == np.uint8:
        values, window = stored, (0, 255, AS_THEY_ARE)
    return _Plane(values, place, window, inverted=header.PhotometricInterpretation == "MONOCHROME1")


def read_dicom(file: Path) -> pydicom.Dataset:
    """The header of a DICOM file, pixels not decoded. Raises what pydicom does, ValueError beyond `bench.limits`."""
    import pydicom
    from pydicom.filereader import read_file_meta_info

    syntax = read_file_meta_info(file).get("TransferSyntaxUID")
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian and DEFLATE_RATIO * file.stat().st_size > 8 * MAX_VOXELS:
        raise ValueError("a deflated file may unpack to any size, and this one is too large to try: save it otherwise")
    header = pydicom.dcmread(file)
    if "Rows" in header and "Columns" in header:
        check_pixels(header.Columns, header.Rows)
        values = header.Rows * header.Columns * int(header.get("NumberOfFrames") or 1)
        if values * int(header.get("SamplesPerPixel") or 1) > MAX_VOXELS:
            raise ValueError(f"{values:,} pixels in its frames, the limit is {MAX_VOXELS:,}")
    return header


def _lay_flat(header: pydicom.Dataset, frame: int) -> None:
    """Copies the functional groups of a frame (enhanced CT and MR: rescale, window) to the top of the header."""
    shared, own = header.get("SharedFunctionalGroupsSequence"), header.get("PerFrameFunctionalGroupsSequence")
    for groups in ([shared[0]] if shared else []) + ([own[frame]] if own else []):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            if items := groups.get(name):
                header.update(items[0])


def _header_window(header: pydicom.Dataset) -> tuple[float, float, str] | None:
    """The first window of the header. PS3.3 C.11.2.1.2: LINEAR (the default) counts the width in values."""
    center, width = (_first(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    linear = header.get("VOILUTFunction", "LINEAR") == "LINEAR"
    if center is None or width is None or not width > linear:
        return None
    low, high = (center - width / 2, center + width / 2 - 1) if linear else (center - width / 2, center + width / 2)
    return low, high, f"the header's window (center {center:g}, width {width:g})"


def _first(value: object) -> float | None:
    """The first of one or several numbers of a header; None where there is none."""
    values = [value] if isinstance(value, int | float | str) else list(value or [])
    return float(values[0]) if values and str(values[0]).strip() else None


def _checked(index: int | None, count: int, file: Path, what: str) -> int:
    if index is None:
        return count // 2
    if not 0 <= index < count:
        raise UserError(f"--slice {index}: {file} has {what}s 0 to {count - 1}")
    return index


def _unreadable(file: Path, kind: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{file}: cannot be read as {kind} ({reason}); replace the file")
