"""A plan becomes a picture: tissue values, the body, the anatomy, the scanner."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from bench.data.phantom.abdomen import draw_abdomen
from bench.data.phantom.chest import draw_chest
from bench.data.phantom.difficulty import DEFAULT, Difficulty
from bench.data.phantom.plan import CHEST, SlicePlan, target_pixels
from bench.data.phantom.scene import Scene
from bench.data.phantom.shapes import Blob, blob_field, waves

# Display values, 0 black, 1 white. Abdominal CT in a soft-tissue window, with contrast in the portal phase.
CT = {
    "air": 0.0, "gas": 0.0, "lung base": 0.01, "fat": 0.17, "muscle": 0.52, "bone": 1.0, "marrow": 0.82,
    "canal": 0.46, "water": 0.41, "liver": 0.65, "spleen": 0.70, "left kidney": 0.80, "right kidney": 0.80,
    "kidney pelvis": 0.62, "pancreas": 0.59, "gallbladder": 0.42, "bladder": 0.41, "adrenal": 0.62,
    "aorta": 0.86, "postcava": 0.75, "esophagus": 0.53, "duodenum": 0.54, "stomach": 0.57,
    "stomach content": 0.45, "bowel wall": 0.56, "contrast": 0.97, "vessel": 0.80, "liver tumor": 0.52,
    "pancreas tumor": 0.48, "colon tumor": 0.65,
}  # fmt: skip
# T1-weighted MR with fat suppressed, after contrast.
MR = CT | {
    "fat": 0.15, "muscle": 0.32, "bone": 0.10, "marrow": 0.30, "canal": 0.14, "water": 0.12, "liver": 0.54,
    "spleen": 0.62, "left kidney": 0.76, "right kidney": 0.76, "kidney pelvis": 0.55, "pancreas": 0.50,
    "gallbladder": 0.14, "adrenal": 0.52, "aorta": 0.88, "postcava": 0.74, "esophagus": 0.42,
    "duodenum": 0.44, "stomach": 0.40, "stomach content": 0.20, "bowel wall": 0.45, "contrast": 0.30,
    "vessel": 0.70,
}  # fmt: skip
# Chest CT in a lung window.
CHEST_CT = {
    "fat": 0.37, "muscle": 0.47, "blood": 0.54, "bone": 0.86, "marrow": 0.66, "lung": 0.07, "nodule": 0.46,
}  # fmt: skip


def render_slice(
    plan: SlicePlan, image_size: int, seed: int = 0, difficulty: Difficulty = DEFAULT
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draws a planned slice. Pure: the same arguments give the same bytes.

    Returns the image, uint8 (S, S), and one mask per target, bool (S, S), of exactly the planned area.
    `plan` comes from `plan_split`; `seed` is the one it was made with.
    """
    scene = _empty(plan, image_size, seed, difficulty)
    if plan.dataset in CHEST:
        draw_chest(scene)
    else:
        draw_abdomen(scene)
    return _scan(scene), scene.masks


def _empty(plan: SlicePlan, size: int, seed: int, difficulty: Difficulty) -> Scene:
    """A scene with the patient's body and tissues, and nothing in it."""
    scene = Scene(
        plan,
        size,
        seed,
        difficulty,
        *[np.zeros((1, 1))] * 4,
        Blob(0.5, 0.5, 0.4),
        np.zeros((1, 1)),
        {},
        target_pixels(plan, size),
    )
    rng = scene.rng("body")
    if plan.dataset in CHEST:
        share = rng.uniform(0.42, 0.56)
    else:
        share = np.clip(0.27 + 1.25 * plan.total / 100 + rng.uniform(-0.02, 0.05), 0.30, 0.66)
    if plan.dataset == "AMOS22-MRI":
        share *= 0.92
    aspect = rng.uniform(1.25, 1.5) if share < 0.55 else rng.uniform(1.15, 1.25)
    # no wider than the image, and off its middle as far as there is room
    radius = min(math.sqrt(share / math.pi), 0.48 / math.sqrt(aspect))
    room = max(0.0, 0.48 - radius * math.sqrt(aspect)), max(0.0, 0.46 - radius / math.sqrt(aspect))
    x, y = (0.5 + min(r, 0.06) * rng.uniform(-1, 1) for r in room)
    scene.body = Blob(x, y, radius, aspect, rng.normal(0, 0.03), waves(rng, 0.02, (2, 3, 4, 5)))
    scene.outline = blob_field(scene.body, (slice(0, size), slice(0, size)), size)
    values = CHEST_CT if plan.dataset in CHEST else MR if plan.dataset.endswith("MRI") else CT
    spread = 0.045 if values is MR else 0.022
    scene.tissue = {name: value + rng.normal(0, spread) * (value > 0.05) for name, value in values.items()}
    scene.tissue["right kidney"] = scene.tissue.get("left kidney", 0.0)  # nothing but its place tells a side
    noise = scene.slice_rng("texture")
    scene.image = np.zeros((size, size), dtype=np.float32)
    scene.free = scene.outline < 1
    scene.fine, scene.coarse = (_texture(noise, size, sigma) for sigma in (1.2, 4.0))
    return scene


def _texture(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Smooth noise of unit variance, (size, size) float32; sigma in px at 256 px."""
    smooth = ndimage.gaussian_filter(
        rng.standard_normal((size, size), dtype=np.float32), sigma * size / 256, truncate=2.5, mode="wrap"
    )
    return smooth / smooth.std()


def _scan(scene: Scene) -> np.ndarray:
    """Blur, noise and, in MR, an uneven coil: uint8 (S, S)."""
    size, rng = scene.size, scene.slice_rng("scan")
    patient = scene.rng("scanner")
    image = scene.image
    level = patient.uniform(0.014, 0.028) * scene.difficulty.noise
    if scene.plan.dataset.endswith("MRI"):
        corners = patient.uniform(0.78, 1.22, (3, 3))
        field = ndimage.zoom(corners, size / 3, order=1, grid_mode=True, mode="nearest")
        image = image * ndimage.uniform_filter(field, size // 6).astype(np.float32)
    else:
        _couch(scene, patient)
    image = ndimage.gaussian_filter(image, patient.uniform(0.5, 0.65) * max(1.0, size / 512), truncate=3)
    grain = ndimage.gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), 0.5, truncate=2)
    grain /= grain.std()
    if scene.plan.dataset.endswith("MRI"):  # the magnitude of a complex signal: Rician
        other = rng.standard_normal((size, size), dtype=np.float32)
        image = np.hypot(image + level * grain, level * other)
    else:
        image = image + level * grain
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def _couch(scene: Scene, rng: np.random.Generator) -> None:
    """The couch's arc below the patient."""
    size = scene.size
    bottom = scene.body.y + scene.half_height * 1.05 + 0.01
    sag, columns = rng.uniform(0.0, 0.05), (np.arange(size) + 0.5) / size
    line = (bottom - sag * (2 * (columns - 0.5)) ** 2) * size
    rows = np.arange(size)[:, None] + 0.5
    thin = np.clip(1 - np.abs(rows - line[None, :]), 0, 1) * (scene.outline > 1.03)
    scene.image += (0.35 * thin).astype(np.float32)
