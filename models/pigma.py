"""Pixel grounded mask aggregation, PiGMA (section 3.3 and Fig. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PiGMA(nn.Module):
    """Averages the query ensemble (Eq. 7) with a two-layer convolutional correction that sees the image."""

    def __init__(self, queries: int, channels: int = 10):
        super().__init__()
        self.deconvolution = nn.ConvTranspose2d(queries + 3, channels, 4, stride=2, padding=1)
        self.convolution = nn.Conv2d(channels + 3, 1, 1)

    def forward(self, candidates: Tensor, images: Tensor, image_index: Tensor) -> Tensor:
        """Candidate logits (P, m, h, w), normalised images (B, 3, H, W), (P,) -> logits (P, 2h, 2w)."""
        height, width = candidates.shape[-2:]

        def image_at(size: tuple[int, int]) -> Tensor:
            return F.interpolate(images, size=size, mode="bilinear", align_corners=False)[image_index]

        fine = (2 * height, 2 * width)
        x = self.deconvolution(torch.cat((image_at((height, width)), candidates), dim=1))
        correction = self.convolution(torch.cat((image_at(fine), x), dim=1))
        ensemble = F.interpolate(candidates.mean(1, keepdim=True), size=fine, mode="bilinear", align_corners=False)
        return ((correction + ensemble) / 2).squeeze(1)


def query_ensemble(candidates: Tensor) -> Tensor:
    """Eq. 7 alone: the mean of the candidate logits, (P, m, h, w) -> (P, h, w)."""
    return candidates.mean(1)
