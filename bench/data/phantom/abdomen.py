"""The abdomen: body wall, spine, ribs, pelvis, bowel, and the organs of AMOS22, each at its drawn area."""

from __future__ import annotations

import math

import numpy as np

from bench.data.phantom.lesions import colon_tumor, liver_lesions, pancreas_tumor
from bench.data.phantom.plan import BOTH_SIDES
from bench.data.phantom.scene import Scene, inside, place, place_tube, shade, stroke
from bench.data.phantom.shapes import Blob, Tube, chain, tube_field, waves
from bench.data.phantom.sizes import areas_of, to_pixels

# organ -> (x, y in the body's frame, aspect, angle of the long axis in degrees, waviness, textures)
BLOBS = {
    "aorta": (0.06, 0.12, 1.05, 0, 0.02, 0.012, 0.0),
    "postcava": (-0.13, 0.08, 1.35, 20, 0.05, 0.012, 0.01),
    "esophagus": (0.03, -0.06, 1.5, 30, 0.06, 0.02, 0.02),
    "left kidney": (0.43, 0.30, 1.35, 120, 0.07, 0.015, 0.015),
    "right kidney": (-0.43, 0.30, 1.35, 60, 0.07, 0.015, 0.015),
    "gallbladder": (-0.32, -0.30, 1.5, 65, 0.05, 0.008, 0.0),
    "bladder": (0.0, -0.10, 1.3, 0, 0.05, 0.008, 0.0),
    "spleen": (0.66, 0.10, 2.1, 112, 0.08, 0.018, 0.012),
    "stomach": (0.33, -0.32, 1.6, 40, 0.12, 0.015, 0.03),
    "liver": (-0.42, -0.14, 1.5, -28, 0.10, 0.018, 0.012),
}
# organ -> corners of its course in the body's frame
TUBES = {
    "pancreas": ((-0.17, 0.03), (-0.10, -0.10), (0.04, -0.14), (0.22, -0.10), (0.42, 0.02)),
    "duodenum": ((-0.10, -0.27), (-0.25, -0.20), (-0.28, -0.02), (-0.20, 0.12), (0.00, 0.06)),
}
# smaller ones first: larger organs give way and wrap around them
ORDER = (
    "aorta",
    "postcava",
    "esophagus",
    "right adrenal gland",
    "left adrenal gland",
    "pancreas",
    "duodenum",
    "gallbladder",
    "left kidney",
    "right kidney",
    "bladder",
    "spleen",
    "stomach",
    "liver",
)


def draw_abdomen(scene: Scene) -> None:
    """Draws the whole slice. Level 0 is the dome of the liver, 1 the pelvis."""
    rng = scene.rng("abdomen")
    fat, muscle = rng.uniform(0.06, 0.15), rng.uniform(0.05, 0.08)
    cavity = scene.outline < 1 - fat - muscle
    _wall(scene, rng, fat, cavity)
    scene.free = cavity & scene.free
    organs: dict[str, np.ndarray] = {}
    areas = scene.plan.context | scene.plan.areas
    for name in ORDER:
        # lesions come after what does not move and before what gives way to them
        if "tumor" in scene.plan.areas and (scene.plan.dataset, name) == ("MSD-Pancreas", "pancreas"):
            scene.masks["tumor"] = pancreas_tumor(scene, _course(scene, name), _pixels(scene, "tumor"))
        elif "tumor" in scene.plan.areas and (scene.plan.dataset, name) == ("MSD-Colon", "bladder"):
            scene.masks["tumor"] = colon_tumor(scene, _pixels(scene, "tumor"))
        if name in areas:
            organs[name] = _organ(scene, name, _pixels(scene, name))
    if scene.plan.dataset == "MSD-HepaticVessel":
        liver = organs["liver"]
        sizes = {name: _pixels(scene, name) for name in ("vessel", "tumor") if name in scene.plan.areas}
        scene.masks |= liver_lesions(scene, liver, sizes)
    elif "liver" in organs:
        _liver_vessels(scene, organs["liver"])
    scene.masks |= {name: mask for name, mask in organs.items() if name in scene.plan.areas}
    for both, (left, right) in BOTH_SIDES.items():
        if left in scene.masks and right in scene.masks:
            scene.masks[both] = scene.masks[left] | scene.masks[right]
    _fill(scene, cavity)


def _pixels(scene: Scene, name: str) -> int:
    """The pixels of a target, or of an unlabelled organ sized as in AMOS22-CT."""
    if name in scene.counts:
        return scene.counts[name]
    limits = areas_of("AMOS22-CT", name)
    return to_pixels(scene.plan.context[name], scene.size, limits.low, limits.high)


def _wall(scene: Scene, rng: np.random.Generator, fat: float, cavity: np.ndarray) -> None:
    """Skin, fat, muscle, spine with its muscles, ribs above and hip bones below; takes their space."""
    tissue, scale, level, drift = scene.tissue, scene.half_height, scene.plan.level, scene.plan.drift
    body = scene.outline < 1
    shade(scene, body, tissue["muscle"])
    shade(scene, scene.outline < 0.985, tissue["fat"], 0.008, 0.006)
    shade(scene, scene.outline < 1 - fat, tissue["muscle"], 0.015, 0.01)
    shade(scene, cavity, tissue["fat"], 0.01, 0.015)
    solid = np.zeros_like(body)
    for side in (-1, 1):
        back = Blob(*scene.at(side * 0.24, 0.64), 0.24 * scale, 1.3, side * 0.3, waves(rng, 0.04))
        psoas = Blob(
            *scene.at(side * (0.2 + 0.1 * max(0, level - 0.6)), 0.40),
            0.11 * scale * (1 if level > 0.4 else 0.6),
        )
        for muscle in (back, psoas):
            part = inside(scene, muscle, scene.outline < 1 - fat)
            shade(scene, part, tissue["muscle"], 0.02, 0.015)
            solid |= part
    spine = Blob(
        *scene.at(rng.normal(0, 0.01), 0.42),
        0.185 * scale * rng.uniform(0.95, 1.1),
        1.25,
        0,
        waves(rng, 0.03),
    )
    vertebra = inside(scene, spine)
    shade(scene, vertebra, tissue["bone"], 0.03)
    core = inside(scene, Blob(spine.x, spine.y, spine.radius * 0.88, 1.25, 0, spine.waves))
    shade(scene, core, tissue["marrow"], 0.03, 0.03)
    for side in (-1, 1):
        points = np.array([scene.at(side * 0.09, 0.56), scene.at(side * 0.1, 0.64), scene.at(side * 0.26, 0.68)])
        stroke(scene, chain(points, np.full(3, 0.028 * scale), 30), tissue["bone"], body)
    stroke(
        scene,
        chain(np.array([scene.at(0, 0.7), scene.at(0, 0.86)]), np.full(2, 0.03 * scale), 20),
        tissue["bone"],
        body,
    )
    shade(scene, inside(scene, Blob(*scene.at(0, 0.62), 0.06 * scale)), tissue["canal"])
    solid |= vertebra
    if level < 0.6:
        _ribs(scene, scene.rng("ribs"), fat, drift)
    if level > 0.72:
        solid |= _pelvis(scene, scene.rng("pelvis"), cavity, min(1.0, (level - 0.72) / 0.2))
    scene.free = ~solid


def _ribs(scene: Scene, rng: np.random.Generator, fat: float, drift: float) -> None:
    """Ribs cut at a slant, in the muscle of the wall."""
    start, area = rng.uniform(0, 0.35), scene.outline < 1 - fat
    for side in (-1, 1):
        for index in range(5):
            angle = math.pi / 2 + side * (0.7 + 0.42 * index + start + 0.12 * drift + rng.normal(0, 0.04))
            length, radius = rng.uniform(0.12, 0.26), 0.965 - fat
            turn = np.linspace(-length / 2, length / 2, 4)
            points = np.array([scene.at(radius * math.cos(angle + t), radius * math.sin(angle + t)) for t in turn])
            stroke(scene, chain(points, np.full(4, 0.03 * scene.half_height), 24), scene.tissue["bone"], area)


def _pelvis(scene: Scene, rng: np.random.Generator, cavity: np.ndarray, low: float) -> np.ndarray:
    """The wings of the hip bones with their muscles; lower down they come closer."""
    solid = np.zeros_like(cavity)
    scale = scene.half_height
    for side in (-1, 1):
        shift = rng.normal(0, 0.02)
        meat = Blob(
            *scene.at(side * (0.78 - 0.08 * low + shift), 0.3),
            0.26 * scale,
            1.6,
            math.pi / 2,
            waves(rng, 0.06),
        )
        part = inside(scene, meat, cavity)
        shade(scene, part, scene.tissue["muscle"], 0.02, 0.015)
        solid |= part
        corners = [(0.78 - 0.1 * low, -0.05), (0.72 - 0.1 * low, 0.2), (0.5 - 0.1 * low, 0.5), (0.32, 0.55)]
        points = np.array([scene.at(side * (x + shift), y) for x, y in corners])
        wing = chain(points, np.array([0.07, 0.05, 0.06, 0.04]) * scale, 50)
        stroke(scene, wing, scene.tissue["bone"], scene.outline < 0.95)
        solid |= tube_field(wing, scene.size, 0.1 * scene.size) < 1.2
        stroke(scene, Tube(wing.points, wing.widths * 0.45), scene.tissue["marrow"], scene.outline < 0.95)
    return solid


def _shift(scene: Scene, name: str, amount: float = 0.035) -> tuple[np.random.Generator, float, float]:
    """The organ's generator and where it lies off its usual place: by patient, and a little by slice."""
    rng = scene.rng(name)
    x, y, along, across = rng.normal(0, 1, 4)
    drift = scene.plan.drift
    return rng, amount * (x + 0.5 * drift * along), amount * (y + 0.5 * drift * across)


def _course(scene: Scene, name: str) -> np.ndarray:
    """The corners (k, 2), image widths, of a tubular organ in this patient at this level."""
    rng, dx, dy = _shift(scene, name)
    corners = np.array([scene.at(x + dx, y + dy) for x, y in TUBES[name]])
    corners += rng.normal(0, 0.02 * scene.half_height, corners.shape)
    if name == "pancreas":  # the tail lies above the head
        level = scene.plan.level
        first, last = np.clip((0.56 - level) / 0.09, 0, 2), np.clip(3 + (0.60 - level) / 0.08, 3, 4)
        return _piece(corners, np.linspace(first, last, len(corners)))
    return corners


def _piece(corners: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n, 2) points on the path through `corners` (k, 2), at `places` (n,) from 0, the first corner, to k - 1."""
    return np.stack([np.interp(places, np.arange(len(corners)), axis) for axis in corners.T], axis=1)


def _organ(scene: Scene, name: str, count: int) -> np.ndarray:
    """Places and paints one organ: (S, S) bool of exactly `count` pixels (fewer only in a full cavity)."""
    if "adrenal" in name:
        return _adrenal(scene, name, count)
    if name in TUBES:
        return _tube_organ(scene, name, count)
    x, y, aspect, degrees, wavy, fine, coarse = BLOBS[name]
    rng, dx, dy = _shift(scene, name, 0.02 if name in ("aorta", "postcava", "esophagus") else 0.04)
    shape = Blob(
        *scene.at(x + dx, y + dy),
        math.sqrt(count / math.pi) / scene.size,
        aspect * rng.uniform(0.88, 1.14),
        math.radians(degrees + rng.normal(0, 8)),
        waves(rng, wavy),
    )
    mask = place(scene, shape, count)
    shade(scene, mask, scene.tissue[name], fine, coarse)
    if name.endswith("kidney") and count > 60:
        pelvis = Blob(shape.x - 0.35 * shape.radius * np.sign(x), shape.y, shape.radius * 0.42, 1.6, shape.angle)
        shade(scene, inside(scene, pelvis, mask), scene.tissue["kidney pelvis"], 0.02, 0.02)
    elif name == "stomach":
        wall = 0.9 * shape.radius
        content = Blob(shape.x, shape.y, wall * 0.95, shape.aspect, shape.angle, shape.waves)
        shade(scene, inside(scene, content, mask), scene.tissue["stomach content"], 0.015, 0.04)
        bubble = Blob(shape.x, shape.y - 0.45 * shape.radius, 0.4 * shape.radius, 1.8)
        if rng.random() < 0.6:
            shade(scene, inside(scene, bubble, mask), scene.tissue["gas"])
    elif name == "esophagus" and count > 25 and rng.random() < 0.5:
        shade(
            scene,
            inside(scene, Blob(shape.x, shape.y, 0.35 * shape.radius, 1.5), mask),
            scene.tissue["gas"] + 0.1,
        )
    return mask


def _tube_organ(scene: Scene, name: str, count: int) -> np.ndarray:
    """Pancreas (lobulated) and duodenum (with a lumen)."""
    corners = _course(scene, name)
    rng = scene.rng(name + " width")
    begin, uneven = rng.random(), rng.uniform(0.7, 1.3, len(corners))
    length = float(np.hypot(*np.diff(corners, axis=0).T).sum())
    width = count / scene.size**2 / (2 * length)
    least = 0.035 * scene.half_height
    if width < least:  # too little for the whole course: a piece of it is in the plane
        keep = max(0.2, width / least)
        start = (1 - keep) * (begin + 0.1 * scene.plan.drift)
        places = np.clip(start + keep * np.linspace(0, 1, len(corners)), 0, 1)
        corners = _piece(corners, places * (len(corners) - 1))
        width = least
    widths = width * uneven
    mask = place_tube(scene, chain(corners, widths, 48), count)
    rough = 0.03 if name == "pancreas" else 0.015
    shade(scene, mask, scene.tissue[name], rough, 0.5 * rough)
    if name == "duodenum" and count > 60:
        lumen = chain(corners, widths * 0.4, 40)
        value = rng.choice([scene.tissue["stomach content"], scene.tissue["gas"], scene.tissue["contrast"]])
        stroke(scene, lumen, float(value), mask, 0.8)
    return mask


def _adrenal(scene: Scene, name: str, count: int) -> np.ndarray:
    """An inverted Y in front of the kidney: a body and two limbs; the right one lies behind the postcava."""
    side = -1 if name.startswith("right") else 1
    rng, dx, dy = _shift(scene, name, 0.03)
    base = (-0.22, 0.16) if side < 0 else (0.26, 0.10)
    x, y = scene.at(base[0] + dx, base[1] + dy)
    length = 1.15 * math.sqrt(count / 2.2) / scene.size * rng.uniform(0.9, 1.2)
    parts = []
    for degrees, share in ((-90, 0.6), (90 - side * 38, 1.1), (90 + side * 12, 1.0)):
        angle = math.radians(degrees + rng.normal(0, 8) - side * 10)
        steps = np.linspace(0, share * length, 10)
        parts.append(np.stack([x + steps * math.cos(angle), y + steps * math.sin(angle)], axis=1))
    tube = Tube(np.concatenate(parts), np.full(30, max(0.6 / scene.size, 0.22 * length)))
    mask = place_tube(scene, tube, count)
    value = scene.tissue["fat"] + (scene.tissue["adrenal"] - scene.tissue["fat"]) * scene.difficulty.contrast
    shade(scene, mask, value, 0.02)
    return mask


def _liver_vessels(scene: Scene, liver: np.ndarray) -> None:
    """A few unlabelled vessels, so that a liver looks alike in all data sets."""
    rng = scene.rng("liver vessels")
    for _ in range(5):
        x, y = scene.at(-0.42 + rng.normal(0, 0.17), -0.12 + rng.normal(0, 0.15))
        angle, length = rng.uniform(0, 3.1), scene.half_width * rng.uniform(0.04, 0.16)
        ends = np.array([[x, y], [x + length * math.cos(angle), y + length * math.sin(angle)]])
        width = scene.half_width * rng.uniform(0.008, 0.016)
        stroke(scene, chain(ends, np.array([width, 0.6 * width]), 16), scene.tissue["vessel"], liver, 0.8)


def _fill(scene: Scene, cavity: np.ndarray) -> None:
    """What else is in the cavity: the bases of the lungs above, loops of bowel and small vessels below."""
    rng, level, drift, scale = scene.rng("bowel"), scene.plan.level, scene.plan.drift, scene.half_width
    if level < 0.2:
        heart = Blob(*scene.at(0.14, -0.32), 0.36 * scene.half_height, 1.4, 0.3, waves(rng, 0.05))
        if level < 0.1:
            part = inside(scene, heart, scene.free & cavity)
            shade(scene, part, 0.5 * (scene.tissue["postcava"] + scene.tissue["muscle"]), 0.015, 0.015)
            scene.free &= ~part
        lung = scene.free & cavity & (scene.outline > 0.25 + 1.6 * level)
        shade(scene, lung, scene.tissue["lung base"], 0.01)
        scene.free &= ~lung
    loops = round(np.clip(26 * (level - 0.3), 3, 14) * (0.6 + 0.4 * scene.difficulty.distractors))
    content = [scene.tissue[name] for name in ("stomach content", "gas", "contrast", "duodenum")]
    for index in range(loops):
        low = -0.62 if level < 0.65 else -0.55
        x, y = rng.uniform(-0.7, 0.7), rng.uniform(low, 0.12)
        if index < 2:  # ascending and descending colon
            x, y = (0.66, -0.66)[index], rng.uniform(0.0, 0.25)
        x, y = x + 0.03 * drift * rng.normal(), y + 0.03 * drift * rng.normal()
        radius = scale * rng.uniform(0.07, 0.12 if index < 2 else 0.1)
        shape = Blob(*scene.at(x, y), radius, rng.uniform(1, 2.2), rng.uniform(0, 3.1), waves(rng, 0.12))
        inner = Blob(shape.x, shape.y, 0.72 * radius, shape.aspect, shape.angle, shape.waves)
        filling = float(rng.choice(content, p=(0.4, 0.2, 0.15, 0.25)))
        loop = inside(scene, shape, scene.free & cavity)
        if loop.sum() < 0.4 * math.pi * (radius * scene.size) ** 2:
            continue
        shade(scene, loop, scene.tissue["bowel wall"], 0.02)
        shade(scene, inside(scene, inner, loop), filling, 0.02, 0.04 if filling > 0.1 else 0)
        scene.free &= ~loop
    for _ in range(round(22 * scene.difficulty.distractors) if level > 0.15 else 0):
        x, y = scene.at(rng.uniform(-0.6, 0.6), rng.uniform(-0.55, 0.3))
        angle, length = rng.uniform(0, 3.1), scale * rng.uniform(0.0, 0.07)
        ends = np.array([[x, y], [x + length * math.cos(angle), y + length * math.sin(angle)]])
        width = scale * rng.uniform(0.006, 0.014)
        stroke(scene, chain(ends, np.full(2, width), 12), scene.tissue["postcava"], scene.free & cavity, 0.9)
