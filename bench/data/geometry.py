"""Original image <-> square training frame: padded at the right and bottom, then resized; and back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def image_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3) uint8, antialiased; the padding is black."""
    return np.asarray(Image.fromarray(_pad(image)).resize((size, size), Image.Resampling.BICUBIC))


def mask_to_square(mask: np.ndarray, size: int) -> np.ndarray:
    """(H, W) bool -> (size, size) bool: a pixel is in if half of it is; an object too small for that keeps its
    best covered pixels, so that none vanishes.
    """
    padded = _pad(mask)
    if padded.shape[0] == size:
        return padded
    scaled = Image.fromarray(padded.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BOX)
    cover = np.asarray(scaled)
    return cover >= min(128, max(int(cover.max()), 1))


def logits_to_original(logits: Tensor, height: int, width: int) -> Tensor:
    """(P, s, s) logits in the square frame -> (P, height, width): resized bilinearly, the padding cut off."""
    side = max(height, width)
    antialias = logits.shape[-1] > side
    full = F.interpolate(
        logits.float()[:, None], size=(side, side), mode="bilinear", align_corners=False, antialias=antialias
    )
    return full[:, 0, :height, :width]


def masks_from_logits(logits: Tensor, height: int, width: int) -> np.ndarray:
    """Logits (P, s, s) -> masks (P, height, width) bool at probability above 0.5."""
    with torch.no_grad():
        return (logits_to_original(logits, height, width) > 0).cpu().numpy()


def _pad(array: np.ndarray) -> np.ndarray:
    height, width = array.shape[:2]
    side = max(height, width)
    extra = [(0, side - height), (0, side - width)] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, extra)
