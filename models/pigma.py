"""Pixel grounded mask aggregation, PiGMA (section 3.3 and Fig. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.semantic import SemanticMap


class PiGMA(nn.Module):
    """Averages the query ensemble (Eq. 7) with a two-layer convolutional correction that sees the image.

    No activation stands between its layers, so they are one 4 x 4 transposed convolution of the m candidate masks, and
    these are mu . S: what is left to compute from S are 17 masks whatever m, one per tap and the mean.
    """

    masks = 4 * 4 + 1

    def __init__(self, queries: int, channels: int = 10):
        super().__init__()
        self.deconvolution = nn.ConvTranspose2d(queries + 3, channels, 4, stride=2, padding=1)
        self.convolution = nn.Conv2d(channels + 3, 1, 1)

    def forward(self, embeddings: Tensor, semantic: SemanticMap, images: Tensor, image_index: Tensor) -> Tensor:
        """Mask embeddings (P, m, d), S (B, d, h, w), normalised images (B, 3, H, W), (P,) -> logits (P, 2h, 2w)."""
        mix = self.convolution.weight.flatten()
        kernel = torch.einsum("c,ncyx->nyx", mix[3:], self.deconvolution.weight)  # (3 + m, 4, 4)
        mean = kernel.new_full((len(kernel) - 3, 1), 1 / (len(kernel) - 3))
        combine = torch.cat((kernel[3:].flatten(1), mean), dim=1)  # (m, 17)
        logits = semantic.logits(combine.T @ embeddings, image_index).float()

        coarse = logits.shape[-2:]
        fine = (2 * coarse[0], 2 * coarse[1])
        taps = F.fold(logits[:, :-1].flatten(2), fine, kernel_size=4, stride=2, padding=1).squeeze(1)
        ensemble = F.interpolate(logits[:, -1:], size=fine, mode="bilinear", align_corners=False).squeeze(1)
        return (taps + self._image_part(images, kernel[:3], mix, coarse)[image_index] + ensemble) / 2

    def _image_part(self, images: Tensor, kernel: Tensor, mix: Tensor, coarse: tuple[int, int]) -> Tensor:
        """What the image adds to the correction, biases included, once per image: (B, 2h, 2w)."""

        def image_at(size: tuple[int, int]) -> Tensor:
            return F.interpolate(images, size=size, mode="bilinear", align_corners=False)

        bias = mix[3:] @ self.deconvolution.bias + self.convolution.bias
        first = F.conv_transpose2d(image_at(coarse), kernel[:, None], stride=2, padding=1)
        second = torch.einsum("c,bcyx->byx", mix[:3], image_at((2 * coarse[0], 2 * coarse[1])))
        return first.squeeze(1) + second + bias
