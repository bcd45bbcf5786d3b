"""The location prior: no image, only where an object was in training. The floor under every learned method.

Per (data set, object): the mean training mask on a grid of the normalised image frame, and the threshold on
it that gives the highest mean Dice over the validation masks. A prediction is the thresholded prior, resized
to the image.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bench.atomic import write_file
from bench.data.dataset import load_mask
from bench.errors import UserError
from bench.interface import FitSummary, Log, Prediction, Sample
from bench.limits import load_arrays
from bench.spec import RunSpec

GRID = 128  # cells per side of the normalised frame
THRESHOLDS = 64  # candidates per object, evenly spaced below the prior's maximum
Key = tuple[str, str]  # data set, object


def build(spec: RunSpec) -> LocationPrior:
    """The method of a run; nothing in the spec changes it."""
    return LocationPrior()


class LocationPrior:
    """A `Method` without an image. After `fit(..., run_dir, ...)` or `load(run_dir)` it can predict."""

    def __init__(self) -> None:
        self.priors: dict[Key, np.ndarray] = {}  # (GRID, GRID) float32 in 0..1
        self.thresholds: dict[Key, float] = {}

    def fit(self, train: Sequence[Sample], val: Sequence[Sample], run_dir: Path, log: Log) -> FitSummary:
        """Averages the training masks, chooses the thresholds and writes run_dir/location_prior.npz.

        An object without a validation mask gets its threshold from the training masks. Raises UserError for
        an unreadable mask.
        """
        started = time.perf_counter()
        masks, val_masks = masks_by_object(train), masks_by_object(val)
        self.priors, self.thresholds = {}, {}
        dices = []
        for number, (key, files) in enumerate(masks.items(), start=1):
            prior = mean_mask([load_mask(file) for file in files])
            judges = [load_mask(file) for file in val_masks.get(key, files)]
            self.priors[key] = prior
            self.thresholds[key], dice = best_threshold(prior, judges)
            if key in val_masks:
                dices.append(dice)
            log.progress(f"prior {key[1]}", number, len(masks))
        save(run_dir / "location_prior.npz", self.priors, self.thresholds)
        return FitSummary(
            budget=f"{len(masks)} mean masks of {GRID} x {GRID} cells",
            train_seconds=time.perf_counter() - started,
            parameters=0,
            images_seen=len(train),
            best_val_dice=float(np.mean(dices)) if dices else None,
            given={"images_seen": str(len(train)), "selection": "threshold of the highest validation Dice"},
            notes=["the mean training mask, thresholded on validation; it never sees an image"],
        )

    def load(self, run_dir: Path) -> None:
        """Takes the priors that an earlier `fit` left in `run_dir`; raises UserError if there are none."""
        file = run_dir / "location_prior.npz"
        if not file.exists():
            raise UserError(f"{file}: no such file; fit the location prior first")
        try:
            saved = load_arrays(file)
            keys = [(dataset, label) for dataset, label in saved["keys"].tolist()]
            priors = saved["priors"].astype(np.float32).reshape(len(keys), GRID, GRID)
            self.priors = dict(zip(keys, priors, strict=True))
            self.thresholds = dict(zip(keys, saved["thresholds"].astype(float).tolist(), strict=True))
        except Exception as error:  # numpy, zipfile and zlib raise whatever a broken file leads them to
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(f"{file} holds no location prior ({reason}): fit it again") from None

    def predict(self, samples: Iterable[Sample], log: Log) -> Iterator[Prediction]:
        """The thresholded prior of each target; an object never seen in training gets an empty mask."""
        samples = list(samples)
        masks: dict[tuple[Key, int, int], np.ndarray] = {}  # the mask is the same for all images of one size
        for number, sample in enumerate(samples, start=1):
            for target in sample.targets:
                started = time.perf_counter()
                key = (sample.dataset, target.object)
                cell = (key, sample.height, sample.width)
                if cell not in masks:
                    masks[cell] = self._mask(*cell)
                yield Prediction(sample, target, masks[cell].copy(), time.perf_counter() - started)
            log.progress("predict", number, len(samples))

    def _mask(self, key: Key, height: int, width: int) -> np.ndarray:
        if key not in self.priors:
            return np.zeros((height, width), bool)
        return resize(self.priors[key], height, width) >= self.thresholds[key]


def masks_by_object(samples: Sequence[Sample]) -> dict[Key, list[Path]]:
    """(data set, object) -> mask files, in the order of `samples`."""
    files: dict[Key, list[Path]] = {}
    for sample in samples:
        for target in sample.targets:
            files.setdefault((sample.dataset, target.object), []).append(target.mask_file)
    return files


def mean_mask(masks: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of (H, W) bool masks of any sizes on the normalised frame: (GRID, GRID) float32 in 0..1."""
    total = np.zeros((GRID, GRID), np.float64)
    for mask in masks:
        total += resize(mask.astype(np.float32), GRID, GRID)
    return (total / len(masks)).astype(np.float32)


def resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) float32 -> (height, width) float32, bilinear, averaging the area where it gets smaller."""
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def best_threshold(prior: np.ndarray, masks: Sequence[np.ndarray]) -> tuple[float, float]:
    """The threshold of highest mean Dice over `masks`, (H, W) bool, each at its own size; and that Dice.

    Candidates: THRESHOLDS values from max / THRESHOLDS to max. Of equal ones the lowest is taken.
    """
    candidates = np.linspace(0, 1, THRESHOLDS + 1)[1:] * float(prior.max())
    dice = np.zeros(THRESHOLDS)
    for mask in masks:
        values = resize(prior, *mask.shape)
        # pixels at or above each candidate, from counts of those in each interval between candidates
        above = np.searchsorted(candidates, values.ravel(), side="right")
        inside = above[mask.ravel()]
        predicted = np.bincount(above, minlength=THRESHOLDS + 1)[::-1].cumsum()[::-1][1:]
        hit = np.bincount(inside, minlength=THRESHOLDS + 1)[::-1].cumsum()[::-1][1:]
        dice += 2 * hit / np.maximum(predicted + mask.sum(), 1)
    best = int(dice.argmax())
    return float(candidates[best]), float(dice[best] / len(masks))


def save(file: Path, priors: dict[Key, np.ndarray], thresholds: dict[Key, float]) -> None:
    """Writes priors, thresholds and their keys as one npz without pickles, whole or not at all."""
    arrays = {
        "keys": np.array([list(key) for key in priors], dtype=np.str_).reshape(-1, 2),
        "priors": np.array(list(priors.values()), np.float32).reshape(-1, GRID, GRID),
        "thresholds": np.array([thresholds[key] for key in priors], np.float64),
    }
    write_file(file, lambda handle: np.savez_compressed(handle, **arrays))
