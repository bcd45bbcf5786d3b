"""Lesions and vessels of the abdomen: targets to be searched for, and the look-alikes beside them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from bench.data.phantom.scene import Scene, inside, place, shade, spot_in
from bench.data.phantom.shapes import Blob, Tube, grow, tube_field, waves

LIVER = (-0.42, -0.14, 0.35, 0.4)  # centre and half the extent in the body's frame


def _toward(scene: Scene, around: float, value: float) -> float:
    """A lesion's value: as far from the tissue around it as the difficulty's contrast says."""
    return around + (value - around) * scene.difficulty.contrast


def liver_lesions(scene: Scene, liver: np.ndarray, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Cysts (look-alikes), then vessels and tumours of `sizes` px in the liver: object -> (S, S) bool."""
    masks: dict[str, np.ndarray] = {}
    room = liver.copy()
    if "tumor" in sizes:
        masks["tumor"] = _liver_tumor(scene, room, sizes["tumor"])
        room &= ~masks["tumor"]
    _cysts(scene, room)
    if "vessel" in sizes:
        masks["vessel"] = _vessels(scene, room, sizes["vessel"])
    return masks


def _liver_tumor(scene: Scene, liver: np.ndarray, count: int) -> np.ndarray:
    """One or two uneven spots with a rim, darker than the liver and brighter than a cyst: (S, S) bool."""
    rng, deepest = scene.rng("liver tumor"), scene.largest_radius("tumor")
    shares = (0.65, 0.35) if rng.random() < 0.35 and deepest > 4.5 and count > 9 else (1.0,)
    counts = [round(share * count) for share in shares]
    counts[0] += count - sum(counts)
    mask = np.zeros_like(liver)
    value = _toward(scene, scene.tissue["liver"], scene.tissue["liver tumor"])
    for part_count in counts:
        radius = math.sqrt(part_count / math.pi)
        x, y = spot_in(scene, liver & ~mask, rng, deepest * math.sqrt(part_count / count) + 1, LIVER)
        shape = Blob(x, y, radius / scene.size, rng.uniform(1, 1.4), rng.uniform(0, 3), waves(rng, 0.14, (2, 3, 5)))
        part = place(scene, shape, part_count, liver & ~mask)
        shade(scene, part, value, 0.03, 0.05)
        if part_count > 40:
            rim = part & ~inside(scene, Blob(x, y, 0.8 * shape.radius, shape.aspect, shape.angle, shape.waves))
            shade(scene, rim, 0.7 * value + 0.3 * scene.tissue["liver"], 0.03)  # its outer edge is the sharper one
        mask |= part
    return mask


def _cysts(scene: Scene, liver: np.ndarray) -> None:
    """Round, even, sharp and as dark as water: not tumours. Bright even spots (haemangiomas): not vessels."""
    rng = scene.rng("cysts")
    for value, mean in (("water", 2.0), ("vessel", 0.7)):
        for _ in range(rng.poisson(mean * scene.difficulty.distractors)):
            radius = scene.half_width * np.exp(rng.normal(-3.6, 0.45))
            x, y = spot_in(scene, liver, rng, radius * scene.size, LIVER)
            shade(
                scene,
                inside(scene, Blob(x, y, radius, rng.uniform(1, 1.15)), liver),
                scene.tissue[value],
                0.006,
            )


def _tree(rng: np.random.Generator, root: np.ndarray, angle: float, length: float, width: float) -> Tube:
    """A branching course in image widths: a trunk, two boughs, four twigs, each thinner."""
    points, widths = [], []
    front = [(root, angle, length, width, 0)]
    while front:
        start, direction, reach, thick, depth = front.pop()
        steps = np.linspace(0, 1, max(6, int(reach / max(thick, 1e-4))))
        bend = rng.normal(0, 0.3)
        turn = direction + bend * steps
        course = start + reach * np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1), 0) / len(steps)
        points.append(course)
        widths.append(thick * (1 - 0.35 * steps))
        if depth < 2:
            for fork in (-0.55, 0.5):
                if rng.random() < 0.85:
                    way = direction + bend + fork + rng.normal(0, 0.15)
                    front.append((course[-1], way, 0.75 * reach, 0.62 * thick, depth + 1))
    return Tube(np.concatenate(points), np.concatenate(widths))


def _vessels(scene: Scene, liver: np.ndarray, count: int) -> np.ndarray:
    """Branching bright tubes, as many and as wide as `count` px ask for: (S, S) bool."""
    rng = scene.rng("hepatic vessels")
    unit = scene.half_width
    field = np.full(liver.shape, np.inf, dtype=np.float32)
    # the trees are the patient's: where its slices show less of them they are thinner
    largest = max(count, scene.pixels(scene.plan.largest["vessel"]))
    trees = 1 + int(rng.integers(0, 2)) + (largest > scene.pixels(0.3))
    for _ in range(trees):
        root = np.array(spot_in(scene, liver, rng, 0.05 * unit * scene.size, LIVER))
        angle = rng.uniform(0, 2 * math.pi)
        share = largest / trees / scene.size**2
        # length and width grow together with the area: some 3.6 trunk lengths of tube in a tree
        width = max(0.5 / scene.size, 0.16 * math.sqrt(share)) * rng.uniform(0.85, 1.2)
        tree = _tree(rng, root, angle, max(2 * width, share / (2 * width * 2.6)), width)
        reach = 3 * float(tree.widths.max()) * scene.size + 2
        field = np.minimum(field, tube_field(tree, scene.size, reach))
    if (liver & np.isfinite(field)).sum() < count:  # most of it fell outside the liver: thicken what is inside
        root = spot_in(scene, liver, rng, 0.3 * math.sqrt(count), LIVER)
        blob = Tube(np.array([root]), np.array([math.sqrt(count / math.pi) / scene.size]))
        field = np.minimum(field, 1 + tube_field(blob, scene.size, 3 * math.sqrt(count) + 3))
    allowed = liver & np.isfinite(field)
    mask = grow(field, allowed, min(count, int(allowed.sum())))
    value = _toward(scene, scene.tissue["liver"], scene.tissue["vessel"])
    shade(scene, mask, value, 0.012)
    return mask


def pancreas_tumor(scene: Scene, course: np.ndarray, count: int) -> np.ndarray:
    """A darker, uneven mass in or beside the pancreas, whose corners (k, 2) are `course`: (S, S) bool."""
    rng = scene.rng("pancreas tumor")
    place_on = rng.uniform(0.1, 0.9) * (len(course) - 1)
    x, y = (float(np.interp(place_on, np.arange(len(course)), axis)) for axis in course.T)
    off = rng.normal(0, 0.035 * scene.half_width, 2)
    radius = math.sqrt(count / math.pi) / scene.size
    shape = Blob(x + off[0], y + off[1], radius, rng.uniform(1, 1.4), rng.uniform(0, 3), waves(rng, 0.13))
    mask = place(scene, shape, count)
    value = _toward(scene, scene.tissue["pancreas"], scene.tissue["pancreas tumor"])
    shade(scene, mask, value, 0.03, 0.045)
    for _ in range(rng.poisson(1.2 * scene.difficulty.distractors)):
        angle, far = rng.uniform(0, 6.3), scene.half_width * rng.uniform(0.08, 0.3)
        size = scene.half_width * rng.uniform(0.02, 0.045)
        cyst = Blob(x + far * math.cos(angle), y + 0.6 * far * math.sin(angle), size, rng.uniform(1, 1.3))
        part = inside(scene, cyst, scene.free)
        shade(scene, part, scene.tissue["water"], 0.006)
        scene.free &= ~part
    return mask


def colon_tumor(scene: Scene, count: int) -> np.ndarray:
    """A thick, uneven, enhancing piece of the wall of one of several loops of colon: (S, S) bool."""
    rng = scene.rng("colon tumor")
    anchors = [(0.6, 0.1), (-0.6, 0.1), (0.3, -0.3), (-0.3, -0.35), (0.0, -0.15), (0.0, -0.5), (0.5, -0.15)]
    order = rng.permutation(len(anchors))
    loops = max(3, round(5 * scene.difficulty.distractors))
    mask = np.zeros_like(scene.free)
    tissue, drift = scene.tissue, scene.plan.drift
    for rank, index in enumerate(order[:loops]):
        x, y = anchors[index]
        x, y = scene.at(x + rng.normal(0, 0.09) + 0.02 * drift, y + rng.normal(0, 0.09))
        radius = scene.half_width * rng.uniform(0.075, 0.115)
        shape = Blob(x, y, radius, rng.uniform(1, 1.5), rng.uniform(0, 3), waves(rng, 0.1))
        filling = float(rng.choice([tissue["gas"], tissue["contrast"], tissue["stomach content"]]))
        side = rng.uniform(0, 2 * math.pi)
        if rank == 0:
            size, widest = math.sqrt(count / math.pi) / scene.size, scene.largest_radius("tumor") / scene.size
            aspect, outline = rng.uniform(1.1, 1.9), waves(rng, 0.15, (2, 3, 5))
            lumps = []
            for turn in np.arange(6) * math.pi / 3 + side:  # on the side of the loop where there is room
                at = (x + radius * math.cos(turn), y + radius * math.sin(turn))
                lumps.append(Blob(*at, size, aspect, turn + math.pi / 2, outline))
            room = [float(scene.free[inside(scene, replace(lump, radius=widest))].mean()) for lump in lumps]
            mask = place(scene, lumps[int(np.argmax(np.minimum(room, 0.7)))], count)
        loop = inside(scene, shape, scene.free)
        shade(scene, loop, tissue["bowel wall"], 0.02)
        lumen = inside(scene, Blob(x, y, 0.76 * radius, shape.aspect, shape.angle, shape.waves), loop)
        shade(scene, lumen, filling, 0.02)
        if rank and rng.random() < 0.6:  # stool: a lump on the wall too, but mottled and not enhancing
            at = (x + 0.6 * radius * math.cos(side), y + 0.6 * radius * math.sin(side))
            stool = inside(scene, Blob(*at, 0.35 * radius, 1.4, side), loop)
            shade(scene, stool, tissue["duodenum"] - 0.06, 0.09, 0.05)
        scene.free &= ~loop
    value = _toward(scene, tissue["bowel wall"], tissue["colon tumor"])
    shade(scene, mask, value, 0.03, 0.045)
    return mask
