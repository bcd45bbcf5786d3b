"""Original image <-> square training frame: padded at the right and bottom, then resized; and back."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F


def image_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3) uint8, antialiased; the padding is black."""
    return np.asarray(Image.fromarray(_pad(image)).resize((size, size), Image.Resampling.BICUBIC))


def mask_to_square(mask: np.ndarray, size: int) -> np.ndarray:
    """(H, W) bool -> (size, size) bool: a pixel is in if half of it is.

    A connected component too small for that keeps its best covered pixel, so that no lesion vanishes.
    """
    padded = _pad(mask)
    if padded.shape[0] == size:
        return padded
    scaled = Image.fromarray(padded.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BOX)
    cover = np.asarray(scaled)
    square = cover >= 128
    scale = size / padded.shape[0]
    for rows, columns in ndimage.find_objects(ndimage.label(padded)[0]):
        top, left = int(rows.start * scale), int(columns.start * scale)
        box = np.s_[top : math.ceil(rows.stop * scale), left : math.ceil(columns.stop * scale)]
        if not square[box].any():
            best = np.unravel_index(cover[box].argmax(), cover[box].shape)
            square[top + best[0], left + best[1]] = True
    return square


def logits_to_original(logits: Tensor, height: int, width: int) -> Tensor:
    """(P, s, s) logits in the square frame -> (P, height, width), the padding cut off.

    Resized as in `models.losses.segmentation_loss`: objects of a few pixels are learned with its kernel (bicubic,
    antialiased), and may vanish with another.
    """
    side = max(height, width)
    full = F.interpolate(logits.float()[:, None], size=(side, side), mode="bicubic", antialias=True)
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
