"""Sine position embedding of DETR (normalised), added to the attention keys."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def sine_tables(height: int, width: int, channels: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The embedding of rows (height, channels / 2) and of columns (width, channels / 2), float32.

    Rows and columns count from 1 and are scaled to 0..2 pi; frequencies go down from 1 to 1 / 10000.
    """
    with torch.inference_mode(False):  # cached: a table made while predicting must serve in training too
        return _encode(height, channels // 2, device), _encode(width, channels // 2, device)


def _encode(length: int, half: int, device: torch.device | None) -> Tensor:
    index = torch.arange(half, dtype=torch.float32, device=device)
    period = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)
    position = torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + 1e-6) * (2 * math.pi)
    angle = position[:, None] / period
    return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)


@lru_cache(maxsize=64)
def sine_position(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """(height * width, channels) float32: the first half of the channels encodes the row, the second the column."""
    rows, columns = sine_tables(height, width, channels, device)
    with torch.inference_mode(False):
        y = rows[:, None, :].expand(height, width, -1)
        x = columns[None, :, :].expand(height, width, -1)
        return torch.cat((y, x), dim=2).reshape(height * width, channels)
