"""The chest: lungs with vessels, and a nodule (LIDC-IDRI) or a tumour (MSD-Lung) to be searched for."""

from __future__ import annotations

import math

import numpy as np

from bench.data.phantom.scene import Scene, inside, place, shade, spot_in, stroke
from bench.data.phantom.shapes import Blob, chain, grow, waves

LUNGS = (0.0, -0.02, 0.8, 0.62)  # centre and half the extent in the body's frame


def draw_chest(scene: Scene) -> None:
    """Draws the whole slice. Level 0 is the lung's apex, 1 its base."""
    level, tissue = scene.plan.level, scene.tissue
    rng = scene.rng("chest")
    shade(scene, scene.outline < 1, tissue["fat"], 0.01)
    fat = rng.uniform(0.05, 0.13)
    shade(scene, scene.outline < 1 - fat, tissue["muscle"], 0.015)
    full = 0.72 + 0.28 * math.sin(math.pi * min(1.0, 0.25 + 0.75 * level))
    lungs = np.zeros_like(scene.free)
    for side in (-1, 1):
        x, y = scene.at(side * (0.44 + rng.normal(0, 0.015)), -0.02 + rng.normal(0, 0.03))
        radius = 0.5 * full * math.sqrt(scene.half_width * scene.half_height) * rng.uniform(0.95, 1.05)
        shape = Blob(x, y, radius, rng.uniform(1.15, 1.35), math.pi / 2 + side * 0.15, waves(rng, 0.05))
        lungs |= inside(scene, shape, scene.outline < 0.89 - fat)
    lungs &= ~_mediastinum(scene, scene.rng("mediastinum"))
    # the mean lung is darker towards the front, as in a patient on the back
    shade(scene, lungs, tissue["lung"], 0.012, 0.012)
    gravity = (np.arange(scene.size) / scene.size - scene.body.y)[:, None] * 0.10
    scene.image += lungs * gravity.astype(np.float32)
    _bones(scene, scene.rng("ribs"), fat)
    scene.free = lungs.copy()
    _vessels(scene, lungs)
    _look_alikes(scene, lungs)
    if scene.plan.dataset == "LIDC-IDRI":
        _nodule(scene, lungs)
    else:
        _tumor(scene, lungs)


def _mediastinum(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Heart, great vessels, windpipe: painted, and their outline returned."""
    level, tissue, scale = scene.plan.level, scene.tissue, scene.half_height
    blood = tissue["blood"]
    region = np.zeros_like(scene.free)
    column = Blob(*scene.at(rng.normal(0, 0.01), -0.05), 0.34 * scale, 1.9, math.pi / 2, waves(rng, 0.06))
    region |= inside(scene, column)
    shade(scene, region, tissue["fat"] + 0.04, 0.01, 0.01)
    heart_share = np.clip((level - 0.3) / 0.35, 0, 1)
    drift = rng.normal(0, 0.02)
    if heart_share > 0:
        own = scene.rng("heart")
        radius = scale * (0.2 + 0.27 * heart_share) * own.uniform(0.92, 1.08)
        heart = inside(scene, Blob(*scene.at(0.14 + drift, -0.2), radius, 1.25, 0.5, waves(own, 0.06)))
        shade(scene, heart, 0.5 * (blood + tissue["muscle"]), 0.015, 0.01)
        cavity = Blob(*scene.at(0.17 + drift, -0.22), 0.55 * radius, 1.4, 0.5, waves(own, 0.1))
        shade(scene, inside(scene, cavity, heart), blood, 0.012)
        region |= heart
    else:
        own = scene.rng("great vessels")
        for x, y, radius in (
            (0.06, -0.28, 0.11),
            (-0.14, -0.25, 0.09),
            (0.0, -0.12, 0.08),
            (0.15, -0.05, 0.08),
        ):
            x, y = x + own.normal(0, 0.02), y + own.normal(0, 0.03)
            part = inside(scene, Blob(*scene.at(x, y), radius * scale * own.uniform(0.9, 1.3), 1.2, own.uniform(0, 3)))
            shade(scene, part, blood, 0.012)
            region |= part
    aorta = inside(scene, Blob(*scene.at(0.1 + rng.normal(0, 0.01), 0.27), 0.1 * scale * rng.uniform(0.9, 1.2)))
    shade(scene, aorta, blood, 0.012)
    spine = inside(scene, Blob(*scene.at(0, 0.46), 0.21 * scale, 1.25, 0, waves(rng, 0.04)))
    shade(scene, spine, tissue["marrow"], 0.03, 0.04)
    region |= aorta | spine
    airways = [(0.0, -0.02, 0.075)] if level < 0.42 else [(-0.09, 0.0, 0.055), (0.1, 0.02, 0.05)]
    for x, y, radius in airways if level < 0.7 else []:
        shade(scene, inside(scene, Blob(*scene.at(x, y), radius * scale, 1.15, 0.2)), 0.01)
    return region | inside(scene, Blob(*scene.at(0, 0.55), 0.3 * scale, 1.4, 0))


def _bones(scene: Scene, rng: np.random.Generator, fat: float) -> None:
    """Vertebra, ribs, breastbone, shoulder blades."""
    bone, scale, drift = scene.tissue["bone"], scene.half_height, scene.plan.drift
    area = scene.outline < 0.97
    canal = inside(scene, Blob(*scene.at(0, 0.68), 0.065 * scale))
    rim = Blob(*scene.at(0, 0.46), 0.21 * scale, 1.25, 0)
    shade(scene, inside(scene, rim) & ~inside(scene, Blob(rim.x, rim.y, 0.18 * scale, 1.25, 0)), bone, 0.03)
    for side in (-1, 1):
        points = np.array([scene.at(side * 0.07, 0.6), scene.at(side * 0.09, 0.7), scene.at(side * 0.25, 0.76)])
        stroke(scene, chain(points, np.full(3, 0.03 * scale), 30), bone, area)
    points = np.array([scene.at(0, 0.74), scene.at(0.0, 0.88)])
    stroke(scene, chain(points, np.full(2, 0.03 * scale), 20), bone, area)
    shade(scene, canal, scene.tissue["muscle"])
    start = rng.uniform(0, 0.4)
    for side in (-1, 1):
        for index in range(6):
            angle = math.pi / 2 + side * (0.75 + 0.4 * index + start * 0.5 + 0.1 * drift + rng.normal(0, 0.04))
            length, radius = rng.uniform(0.12, 0.24), 0.925 - fat
            turn = np.linspace(-length / 2, length / 2, 4)
            points = np.array([scene.at(radius * math.cos(angle + t), radius * math.sin(angle + t)) for t in turn])
            stroke(scene, chain(points, np.full(4, 0.028 * scale), 24), bone, area)
    stroke(scene, chain(np.array([scene.at(-0.09, -0.9 + fat), scene.at(0.09, -0.9 + fat)]),
                        np.full(2, 0.035 * scale), 20), bone, area)  # fmt: skip
    if scene.plan.level < 0.45:
        for side in (-1, 1):
            points = np.array([scene.at(side * 0.62, 0.78), scene.at(side * 0.8, 0.5)])
            stroke(scene, chain(points, np.array([0.02, 0.04]) * scale, 30), bone, scene.outline < 0.95)


def _vessels(scene: Scene, lungs: np.ndarray) -> None:
    """Vessels branching from each hilum, thick inside and thin outside, and dots where others are cut."""
    rng, value, drift = scene.rng("lung vessels"), scene.tissue["blood"], scene.plan.drift
    scale = scene.half_width
    for side in (-1, 1):
        for _ in range(max(3, round(7 * scene.difficulty.distractors))):
            angle = rng.uniform(-1.35, 1.35) + 0.12 * drift
            point = np.array(scene.at(side * 0.16, 0.02 + rng.normal(0, 0.08)))
            _branch(scene, rng, point, angle, side, 0.013 * scale * rng.uniform(0.6, 1.2), 3, lungs, value)
    for _ in range(round(60 * scene.difficulty.distractors)):
        u, v, shift = rng.random(), rng.random(), rng.normal(0, 0.03, 2) * drift
        x, y = scene.at(2 * u - 1 + shift[0], 1.6 * v - 0.8 + shift[1])
        far = abs(2 * u - 1)
        # a vessel cut at a slant: small, longer than wide, thinner the further out
        width = scale * rng.uniform(0.006, 0.013) * (1.25 - 0.7 * far)
        angle, length = rng.uniform(0, math.pi), rng.uniform(0.8, 5) * width
        ends = np.array([[x, y], [x + length * math.cos(angle), y + length * math.sin(angle)]])
        stroke(scene, chain(ends, np.array([width, width * 0.6]), 10), value, lungs, rng.uniform(0.6, 1))


def _branch(
    scene: Scene,
    rng: np.random.Generator,
    point: np.ndarray,
    angle: float,
    side: int,
    width: float,
    depth: int,
    lungs: np.ndarray,
    value: float,
) -> None:
    """One vessel and, from its end, two thinner ones."""
    length = scene.half_width * rng.uniform(0.13, 0.24)
    bend = rng.normal(0, 0.25)
    middle = point + length / 2 * np.array([side * math.cos(angle), math.sin(angle)])
    end = middle + length / 2 * np.array([side * math.cos(angle + bend), math.sin(angle + bend)])
    stroke(
        scene,
        chain(np.array([point, middle, end]), np.array([width, width * 0.85, width * 0.7]), 24),
        value,
        lungs,
    )
    children = [(angle + bend + turn + rng.normal(0, 0.15)) for turn in (-0.45, 0.45)]
    if depth > 1:
        for child in children:
            if rng.random() < 0.75:
                _branch(scene, rng, end, child, side, width * 0.66, depth - 1, lungs, value)


def _look_alikes(scene: Scene, lungs: np.ndarray) -> None:
    """What is not the target: calcified granulomas (bright, sharp), pleural plaques (flat), bullae (dark)."""
    rng, scale = scene.rng("lung look-alikes"), scene.half_width
    count = rng.poisson(1.2 * scene.difficulty.distractors)
    for _ in range(count):
        x, y = spot_in(scene, lungs, rng, 3, LUNGS)
        dot = Blob(x, y, scale * rng.uniform(0.010, 0.018))
        shade(scene, inside(scene, dot, lungs), scene.tissue["bone"])
    for _ in range(rng.poisson(1.0 * scene.difficulty.distractors)):
        angle, width = rng.uniform(0, 2 * math.pi), rng.uniform(0.04, 0.1)
        for radius in np.linspace(0.6, 0.95, 30):  # outwards until the lung ends
            x, y = scene.at(radius * math.cos(angle), radius * math.sin(angle))
            row, column = min(scene.size - 1, int(y * scene.size)), min(scene.size - 1, int(x * scene.size))
            if not lungs[row, column]:
                break
        plaque = Blob(
            x,
            y,
            scale * width,
            2.8,
            math.atan2(scene.half_height * math.cos(angle), -scale * math.sin(angle)),
        )
        shade(scene, inside(scene, plaque, lungs), scene.tissue["muscle"], 0.01)
    for _ in range(rng.poisson(1.5 * scene.difficulty.distractors)):
        x, y = spot_in(scene, lungs, rng, 4, LUNGS)
        bulla = Blob(x, y, scale * rng.uniform(0.02, 0.06), rng.uniform(1, 1.4), rng.uniform(0, 3))
        shade(scene, inside(scene, bulla, lungs), 0.02)


def _one_lung(scene: Scene, rng: np.random.Generator, lungs: np.ndarray) -> np.ndarray:
    """The patient's left or right lung, so that a lesion does not change sides between slices."""
    half = lungs.copy()
    middle = round(scene.body.x * scene.size)
    if rng.random() < 0.5:
        half[:, middle:] = False
    else:
        half[:, :middle] = False
    return half if half.sum() > 0.25 * lungs.sum() else lungs


def _nodule(scene: Scene, lungs: np.ndarray) -> None:
    """Round, of soft tissue, anywhere in the lungs; sometimes at the pleura, sometimes spiculated."""
    rng, count = scene.rng("nodule"), scene.counts["nodule"]
    juxtapleural = rng.random() < 0.25
    radius = math.sqrt(count / math.pi)
    lung = _one_lung(scene, rng, lungs)
    x, y = spot_in(scene, lung, rng, 1.0 if juxtapleural else scene.largest_radius("nodule") + 2, LUNGS)
    shape = Blob(x, y, radius / scene.size, rng.uniform(1.0, 1.3), rng.uniform(0, 3), waves(rng, 0.08))
    if rng.random() < 0.4:
        for _ in range(6):
            angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(1.4, 2.2) * shape.radius
            ends = np.array([[x, y], [x + length * math.cos(angle), y + length * math.sin(angle)]])
            stroke(scene, chain(ends, np.array([0.8, 0.3]) / scene.size, 12), scene.tissue["muscle"], lungs, 0.5)
    mask = place(scene, shape, count, lungs)
    value = scene.tissue["lung"] + (scene.tissue["nodule"] - scene.tissue["lung"]) * scene.difficulty.contrast
    shade(scene, mask, value * rng.uniform(0.85, 1.05), 0.015, 0.02)
    scene.masks["nodule"] = mask


def _tumor(scene: Scene, lungs: np.ndarray) -> None:
    """A lobulated, spiculated mass of uneven density; small nodules of even density are not it."""
    rng, count = scene.rng("tumor"), scene.counts["tumor"]
    radius = math.sqrt(count / math.pi)
    lung = _one_lung(scene, rng, lungs)
    x, y = spot_in(scene, lung, rng, rng.choice([0.4, 1.0]) * scene.largest_radius("tumor"), LUNGS)
    shape = Blob(x, y, radius / scene.size, rng.uniform(1.0, 1.5), rng.uniform(0, 3), waves(rng, 0.16, (2, 3, 5, 7)))
    for _ in range(10):
        angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(1.3, 1.9) * shape.radius
        ends = np.array([[x, y], [x + length * math.cos(angle), y + length * math.sin(angle)]])
        stroke(scene, chain(ends, np.array([1.0, 0.4]) / scene.size, 16), scene.tissue["muscle"], lungs, 0.6)
    mask = place(scene, shape, count, lungs)
    value = scene.tissue["lung"] + (scene.tissue["nodule"] - scene.tissue["lung"]) * scene.difficulty.contrast
    shade(scene, mask, value, 0.04, 0.05)
    if count > 60 and rng.random() < 0.5:  # necrosis, part of the tumour
        core = grow(np.where(mask, -scene.coarse, np.inf), mask, count // 6)
        shade(scene, core, value * 0.75, 0.03)
    scene.masks["tumor"] = mask
    for _ in range(rng.poisson(1.5 * scene.difficulty.distractors)):
        x, y = spot_in(scene, lungs & ~mask, rng, 3, LUNGS)
        dot = Blob(x, y, scene.half_width * rng.uniform(0.012, 0.022))
        shade(scene, inside(scene, dot, lungs & ~mask), scene.tissue["blood"], 0.01)
