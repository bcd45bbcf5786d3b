"""The case browser: small overlays of all methods on the worst, middle and best cases, for the HTML page."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bench.errors import UserError
from bench.records import decode_mask
from reports.aggregate import Scores
from reports.figures import MASK_COLOR, crop_box, masks_of, read_case
from reports.grid import Grid
from reports.load import SuiteResults
from reports.strata import BINS, members

SIDE = 112  # px of an overlay
WORST, MIDDLE, BEST = 6, 2, 2  # cases of each data set
QUALITY = 70  # of the JPEG
TRUTH = (255, 32, 32)


@dataclass(frozen=True)
class Overlay:
    """One method on one case: a JPEG as data URI, and its Dice in percent, None where there is no number."""

    method: str
    uri: str
    dice: float | None


@dataclass(frozen=True)
class Case:
    """One test mask: its names, size bin, area in percent of the image, the crop itself, and every method's overlay."""

    dataset: str
    object: str
    image_id: str
    prompt: str
    size: str
    area: float
    uri: str
    overlays: tuple[Overlay, ...]

    @property
    def dice(self) -> str:
        """JSON of every method's Dice, for the page's sorting."""
        return json.dumps({overlay.method: overlay.dice for overlay in self.overlays})


def choose(scores: Scores, grid: Grid, reference: str | None) -> list[int]:
    """Places of cases: of each data set those with the lowest, middle and highest Dice of the reference method.

    The reference is the first complete row of method `reference`, or the first complete row; seeds averaged.
    """
    complete = np.flatnonzero(scores.complete)
    if not len(complete):
        return []
    row = next((place for place in complete if grid.rows[place].method == reference), complete[0])
    chosen: list[int] = []
    for dataset in grid.datasets:
        of_dataset = np.flatnonzero((scores.cases["dataset"] == dataset) & np.isfinite(scores.dice[:, row]))
        order = of_dataset[np.argsort(scores.dice[of_dataset, row], kind="stable")]
        middle = max(0, (len(order) - MIDDLE) // 2)
        places = [*order[:WORST], *order[middle : middle + MIDDLE], *order[max(0, len(order) - BEST) :]]
        chosen += dict.fromkeys(int(place) for place in places)
    return chosen


def browser_cases(results: SuiteResults, grid: Grid, scores: Scores) -> list[Case]:
    """The chosen cases with their overlays, of each row's first seed; cases whose files are gone are left out."""
    chosen = choose(scores, grid, results.reference)
    cases = scores.cases.loc[chosen]
    firsts = [results.runs_of(row.method, row.backbone)[0] for row in grid.rows]
    stored = {place: masks_of(run, cases) for place, run in enumerate(firsts)}
    bins = members(cases["area_pct"].to_numpy(), BINS)
    made = []
    for number, case in enumerate(cases.itertuples()):
        files = next((found[case.Index] for found in stored.values() if case.Index in found), None)
        if files is None:
            continue
        try:
            image, truth = read_case(results.data[case.dataset], files, (case.height, case.width))
        except (UserError, KeyError, ValueError):  # the figure of overlays notes it
            continue
        overlays = []
        for place, found in stored.items():
            if case.Index in found:
                line = found[case.Index]
                mask = decode_mask(line["runs"], line["height"], line["width"])
                dice = scores.dice[case.Index, place]
                uri = _uri(_crop(image, truth, mask))
                overlays.append(
                    Overlay(grid.rows[place].label, uri, round(float(dice), 1) if np.isfinite(dice) else None)
                )
        size = BINS[int(bins[number].argmax())].label
        plain = _uri(_crop(image, truth, None))
        made.append(
            Case(case.dataset, case.object, case.image_id, case.prompt, size, case.area_pct, plain, tuple(overlays))
        )
    return made


def _crop(image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: the part around the object, the mask green inside, the truth outlined red."""
    top, left, bottom, right = crop_box(truth)
    part = (slice(top, bottom), slice(left, right))
    picture = np.asarray(Image.fromarray(image[part]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).copy()
    if mask is not None:
        inside = _resized(mask[part])
        picture[inside] = (0.55 * picture[inside] + 0.45 * np.array(MASK_COLOR)).astype(np.uint8)
    outline = _resized(truth[part])
    padded = np.pad(outline, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    picture[outline & ~inner] = TRUTH
    return picture


def _resized(mask: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((SIDE, SIDE), Image.Resampling.NEAREST)) > 0


def _uri(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
