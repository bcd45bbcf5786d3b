"""Sine position embedding of DETR (normalised), added to the attention keys."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def sine_position(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """(height * width, channels) float32: the first half of the channels encodes y, the second x.

    Rows and columns count from 1 and are scaled to 0..2 pi; frequencies go down from 1 to 1 / 10000.
    """
    half = channels // 2
    scale = 2 * math.pi
    rows = torch.arange(1, height + 1, dtype=torch.float32, device=device) / (height + 1e-6) * scale
    columns = torch.arange(1, width + 1, dtype=torch.float32, device=device) / (width + 1e-6) * scale
    index = torch.arange(half, dtype=torch.float32, device=device)
    period = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)

    def encode(position: Tensor) -> Tensor:
        angle = position[:, None] / period
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    y = encode(rows)[:, None, :].expand(height, width, half)
    x = encode(columns)[None, :, :].expand(height, width, half)
    return torch.cat((y, x), dim=2).reshape(height * width, channels)
