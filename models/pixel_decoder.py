"""X-Decoder's pixel decoder (appendix A.1): visual features V at strides 32, 16, 8 and the semantic map S at 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import attend
from models.cpu import group_norm
from models.position import sine_position
from models.semantic import SemanticMap


class ConvBlock(nn.Sequential):
    """Convolution without bias, GroupNorm of 32 groups, and ReLU unless it is a lateral."""

    def __init__(self, inputs: int, width: int, kernel: int, activate: bool = True):
        conv = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_uniform_(conv.weight, a=1)
        super().__init__(conv, nn.GroupNorm(32, width), nn.ReLU(inplace=True) if activate else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, width, H, W)."""
        conv, norm, activation = self
        return activation(group_norm(conv(x), norm))


class EncoderLayer(nn.Module):
    """Post-norm transformer encoder layer; the position goes to queries and keys only."""

    def __init__(self, width: int, heads: int, feedforward: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """(B, N, width), (N, width) -> (B, N, width)."""
        x = self.norm1(x + attend(self.attention, x + position, x))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class PixelDecoder(nn.Module):
    """A transformer encoder on the stride-32 map, then a feature pyramid down to stride `finest`.

    At `finest` 4 the semantic map S is made too; a decoder that reads coarser features only needs no more of it.
    """

    def __init__(self, channels: list[int], width: int, heads: int, feedforward: int, layers: int, finest: int = 4):
        super().__init__()
        steps = {16: 1, 8: 2, 4: 3}[finest]
        self.input_projection = nn.Conv2d(channels[3], width, 1)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, feedforward) for _ in range(layers))
        self.output32 = ConvBlock(width, width, 3)
        # from stride 16 to stride 4, level by level: a coarser `finest` then draws the same initial weights
        levels = [
            (ConvBlock(channels[i], width, 1, activate=False), ConvBlock(width, width, 3)) for i in (2, 1, 0)[:steps]
        ]
        self.laterals = nn.ModuleList(lateral for lateral, _ in levels)
        self.outputs = nn.ModuleList(output for _, output in levels)
        self.mask_features = nn.Conv2d(width, width, 3, padding=1) if finest == 4 else None

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], SemanticMap | None]:
        """Backbone maps of strides 4, 8, 16, 32 -> ([V32, V16, V8], S), V (B, width, H / s, W / s).

        The list ends at `finest`, and S is None unless that is 4.
        """
        return self.split(self.pyramid(maps))

    def split(self, pyramid: list[Tensor]) -> tuple[list[Tensor], SemanticMap | None]:
        """The output of `forward` from that of `pyramid`."""
        return pyramid[:3], None if self.mask_features is None else SemanticMap(pyramid[3], self.mask_features)

    def pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        """V at strides 32, 16, ... down to `finest`."""
        coarse = self.input_projection(maps[3])
        width, rows, columns = coarse.shape[1:]
        tokens = coarse.flatten(2).transpose(1, 2)
        position = sine_position(rows, columns, width, coarse.device)
        for layer in self.encoder:
            tokens = layer(tokens, position)
        x = self.output32(tokens.transpose(1, 2).unflatten(2, (rows, columns)))
        pyramid = [x]
        for lateral, output, finer in zip(self.laterals, self.outputs, maps[2::-1], strict=False):
            x = output(_add_upsampled(lateral(finer), x))
            pyramid.append(x)
        return pyramid


def _add_upsampled(fine: Tensor, coarse: Tensor) -> Tensor:
    """`fine` + `coarse` at its size (nearest); without gradients in place of `fine`."""
    rows, columns = coarse.shape[-2:]
    if torch.is_grad_enabled() or fine.shape[-2:] != (2 * rows, 2 * columns):
        return fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
    fine.unflatten(3, (columns, 2)).unflatten(2, (rows, 2)).add_(coarse[..., :, None, :, None])
    return fine
