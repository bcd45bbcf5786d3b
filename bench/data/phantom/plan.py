"""What each slice shows, before anything is drawn: patients, levels, objects and their areas."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.data.phantom.sizes import areas_of, pixel_range, to_pixels
from experiments.paper import TABLE_9

# Where along the abdomen (0 dome of the liver, 1 pelvis) an organ is seen.
ABDOMEN_LEVELS = {
    "esophagus": (0.00, 0.34),
    "liver": (0.02, 0.72),
    "stomach": (0.08, 0.56),
    "spleen": (0.08, 0.54),
    "right adrenal gland": (0.28, 0.45),
    "left adrenal gland": (0.31, 0.48),
    "adrenal gland": (0.31, 0.45),
    "pancreas": (0.38, 0.64),
    "gallbladder": (0.44, 0.66),
    "left kidney": (0.39, 0.78),
    "right kidney": (0.43, 0.83),
    "kidney": (0.43, 0.78),
    "duodenum": (0.45, 0.80),
    "postcava": (0.06, 0.85),
    "aorta": (0.00, 0.84),
    "bladder": (0.87, 1.00),
}
CHEST = ("LIDC-IDRI", "MSD-Lung")
# Targets that are lesions or parts of an organ, per data set.
LEVELS = {
    "LIDC-IDRI": {"nodule": (0.0, 1.0)},
    "MSD-Lung": {"tumor": (0.0, 1.0)},
    "MSD-Pancreas": {"pancreas": (0.38, 0.64), "tumor": (0.38, 0.64)},
    "MSD-HepaticVessel": {"vessel": (0.08, 0.55), "tumor": (0.08, 0.62)},
    "MSD-Colon": {"tumor": (0.60, 0.96)},
    "AMOS22-CT": ABDOMEN_LEVELS,
    "AMOS22-MRI": {name: span for name, span in ABDOMEN_LEVELS.items() if name != "bladder"},
}
# A mask of both sides together exists where both sides are seen; its area is their sum.
BOTH_SIDES = {
    "kidney": ("left kidney", "right kidney"),
    "adrenal gland": ("left adrenal gland", "right adrenal gland"),
}
SHARE_OF_PATIENTS = {"gallbladder": 0.75}  # the others have been removed
SHARE_OF_SLICES = {("MSD-Pancreas", "tumor"): 0.45, ("MSD-HepaticVessel", "tumor"): 0.6}
LESIONS = ("nodule", "tumor")  # they begin, grow and end along a patient's slices, as the sections of a ball do
PATIENT_SHARE = 0.75  # of the variance of an object's size that its patient explains
STEP = 0.03  # between neighbouring slices, at most, as a fraction of the abdomen
# More than this fraction of the image and the organs of a slice do not fit the largest body any more.
MOST_ORGANS = 0.33


@dataclass(frozen=True)
class SlicePlan:
    """One slice. `areas` holds each target's area in percent of the image, `context` the unlabelled organs'.

    `largest` holds the largest area of each target in any slice of the patient, `total` the largest sum of organ
    areas: they fix what must not change from slice to slice, as the size of the body. `drift` in -1..1 is where in the
    patient's stack the slice lies.
    """

    dataset: str
    patient: int
    index: int
    level: float
    drift: float
    areas: dict[str, float]
    context: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    largest: dict[str, float] = field(default_factory=dict)


def generator(seed: int, *keys: str | int) -> np.random.Generator:
    """A random generator of its own for each tuple of keys, the same on every machine."""
    return np.random.default_rng([seed, *(zlib.crc32(str(key).encode()) for key in keys)])


def target_pixels(plan: SlicePlan, image_size: int) -> dict[str, int]:
    """The pixels of each target's mask. Both sides together stay in Table 9's range of both, rounding included."""
    counts = {name: to_pixels(area, image_size, *_limits(plan, name)) for name, area in plan.areas.items()}
    for both, sides in BOTH_SIDES.items():
        if all(side in counts for side in sides):
            least, most = pixel_range(image_size, *_limits(plan, both))
            smaller, larger = sorted(sides, key=counts.__getitem__)
            total = counts[smaller] + counts[larger]
            counts[larger] -= max(0, total - most)
            counts[smaller] += max(0, least - total)
    return counts


def _limits(plan: SlicePlan, name: str) -> tuple[float, float]:
    limits = areas_of(plan.dataset, name)
    return limits.low, limits.high


def plan_split(
    dataset: str, objects: Sequence[str], first_patient: int, patients: int, slices: int, seed: int
) -> list[SlicePlan]:
    """`patients` x `slices` plans; every slice shows at least one of `objects`, and the rest of its anatomy.

    The areas of an object are its Table 9 distribution's quantiles at the ranks of a random process that is
    smooth along a patient's slices: neighbours resemble each other, and the split as a whole has the table's
    mean and median whatever its number of patients.
    """
    rng = generator(seed, dataset, "plan", first_patient)
    levels, focus = _levels(dataset, objects, patients, slices, rng)
    names = [name for row, name in TABLE_9 if row == dataset and name not in BOTH_SIDES]
    shown = {name: _shown(dataset, name, levels, focus, rng) for name in names}
    sections = {name: _sections(shown[name], focus == name, rng) for name in names if name in LESIONS}
    for name, section in sections.items():
        shown[name] &= section > 0
    areas = _areas(dataset, shown, levels, rng, sections=sections)
    context: dict[str, np.ndarray] = {}
    if not dataset.startswith("AMOS22") and dataset not in CHEST:
        others = [name for name in ABDOMEN_LEVELS if name not in (*names, *BOTH_SIDES)]
        if dataset == "MSD-Colon":  # its loops need the room
            others = [name for name in others if name not in ("liver", "pancreas", "gallbladder")]
        seen = {name: _shown("AMOS22-CT", name, levels, np.full_like(focus, ""), rng) for name in others}
        context = _areas("AMOS22-CT", seen, levels, rng, floor={"liver": 0.45} if "vessel" in names else {})
    kept = {*objects, *(side for name in objects for side in BOTH_SIDES.get(name, ()))}
    if dataset == "MSD-HepaticVessel":
        kept.add("liver")  # its targets lie in it
    return _assemble(dataset, levels, first_patient, areas, context, kept)


def _levels(
    dataset: str, objects: Sequence[str], patients: int, slices: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(patients, slices) levels and the object each patient was chosen for: the one seen least so far."""
    spans = {name: LEVELS[dataset][name] for name in objects}
    seen = dict.fromkeys(spans, 0)
    levels = np.zeros((patients, slices))
    focus = np.empty((patients, slices), dtype=object)
    for patient in range(patients):
        name = min(seen, key=lambda key: (seen[key], spans[key][1] - spans[key][0]))
        low, high = spans[name]
        length = min(STEP * (slices - 1), (high - low) * 0.85)
        start = rng.uniform(low, high - length)
        levels[patient] = start + np.linspace(0, length, slices)
        focus[patient] = name
        for other, (first, last) in spans.items():
            count = int(((levels[patient] >= first) & (levels[patient] <= last)).sum())
            # others have a lesion or not; twice, so that its organ gets patients of its own
            seen[other] += 2 * count * (other == name) if other in LESIONS else count
    return levels, focus


def _shown(dataset: str, name: str, levels: np.ndarray, focus: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(patients, slices) bool: whether the object is seen. A patient's focus always is."""
    low, high = LEVELS[dataset][name]
    shown = (levels >= low) & (levels <= high)
    shown &= rng.random((len(levels), 1)) < SHARE_OF_PATIENTS.get(name, 1.0)
    shown &= rng.random((len(levels), 1)) < SHARE_OF_SLICES.get((dataset, name), 1.0)
    wanted = (focus == name) | np.isin(focus, [both for both, sides in BOTH_SIDES.items() if name in sides])
    return shown | wanted


def _sections(shown: np.ndarray, focus: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(patients, slices) relative area, at most 1, of a ball cut by a patient's slices; not above 0 is beside it.

    A patient chosen for the lesion has it on all slices, as where slices without a target are left out.
    """
    patients, slices = shown.shape
    place = np.linspace(-1, 1, slices) if slices > 1 else np.zeros(1)
    centre, reach = rng.uniform(-0.7, 0.7, (patients, 1)), rng.uniform(0.6, 1.6, (patients, 1))
    reach = np.where(focus.any(axis=1, keepdims=True), np.maximum(reach, 1.15 * (1 + np.abs(centre))), reach)
    return 1 - ((place - centre) / reach) ** 2


def _areas(
    dataset: str,
    shown: dict[str, np.ndarray],
    levels: np.ndarray,
    rng: np.random.Generator,
    floor: dict[str, float] | None = None,
    sections: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """(patients, slices) percent of the image per object, NaN where it is not seen.

    `floor`: the quantile an object's areas begin at, for an organ that must hold something; `sections`: how a
    lesion's area goes along the slices, see `_sections`.
    """
    patients, slices = levels.shape
    common = {both: rng.standard_normal((patients, 1)) for both in BOTH_SIDES}
    phase = 0.5 * np.arange(slices)
    areas = {}
    for name, seen in shown.items():
        own, along, across = rng.standard_normal((3, patients, 1))
        pair = next((both for both, sides in BOTH_SIDES.items() if name in sides), None)
        if pair:
            own = 0.8 * common[pair] + 0.6 * own
        score = PATIENT_SHARE**0.5 * own
        if sections and name in sections:
            score = score + np.log(np.maximum(sections[name], 1e-3))
        else:
            score = score + (1 - PATIENT_SHARE) ** 0.5 * (along * np.cos(phase) + across * np.sin(phase))
            low, high = LEVELS[dataset][name]
            # organs taper to their ends
            score = score - 0.6 * (2 * (levels - (low + high) / 2) / (high - low)) ** 2
        if pair:  # where one side alone is seen, it is a pole
            score = score - 0.9 * ~(shown[BOTH_SIDES[pair][0]] & shown[BOTH_SIDES[pair][1]])
        values = np.full(levels.shape, np.nan)
        ranks = np.argsort(np.argsort(score[seen], kind="stable"), kind="stable")
        least = (floor or {}).get(name, 0.0)
        quantiles = least + (1 - least) * (ranks + 0.5) / max(1, len(ranks))
        values[seen] = areas_of(dataset, name).quantile(quantiles)
        areas[name] = values
    for both, (left, right) in BOTH_SIDES.items():
        if left in areas and right in areas:
            _bound_both(dataset, both, areas[left], areas[right])
    return areas


def _bound_both(dataset: str, both: str, left: np.ndarray, right: np.ndarray) -> None:
    """Keeps the sum of the two sides in Table 9's range of both together (in place, NaN stays)."""
    limits = areas_of(dataset, both)
    total = left + right
    scale = np.clip(total, limits.low, limits.high) / total
    for side in (left, right):
        side[...] = np.where(np.isnan(total), side, side * scale)


def _assemble(
    dataset: str,
    levels: np.ndarray,
    first_patient: int,
    areas: dict[str, np.ndarray],
    context: dict[str, np.ndarray],
    kept: set[str],
) -> list[SlicePlan]:
    """Plans from the tables of areas. Where a slice is too full, large organs that are not `kept` give way."""
    plans = []
    patients, slices = levels.shape
    for patient in range(patients):
        rows = []
        for index in range(slices):
            here = {k: float(v[patient, index]) for k, v in areas.items() if not np.isnan(v[patient, index])}
            around = {k: float(v[patient, index]) for k, v in context.items() if not np.isnan(v[patient, index])}
            rows.append((here, around))
        for name in ("stomach", "spleen", "liver", "bladder"):
            if name in kept:
                continue
            if max(sum(a.values()) + sum(b.values()) for a, b in rows) <= 100 * MOST_ORGANS:
                break
            for here, around in rows:
                around.pop(name, None)
                here.pop(name, None)
        total = max(sum(a.values()) + sum(b.values()) for a, b in rows)
        largest = {name: max(a.get(name, 0.0) for a, _ in rows) for a, _ in rows for name in a}
        for index, (here, around) in enumerate(rows):
            drift = 2 * index / (slices - 1) - 1 if slices > 1 else 0.0
            number = first_patient + patient
            level = float(levels[patient, index])
            plans.append(SlicePlan(dataset, number, index, level, drift, here, around, total, largest))
    return plans
