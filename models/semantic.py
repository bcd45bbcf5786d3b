"""The semantic map S (appendix A.1), made only as far as masks need it.

S = conv3x3(V_4), a mask is mu . S, and its resizing to the decoder's coarser grids are all linear. So the convolution
can be folded into few mask embeddings, (mu W) * V_4, and evaluated on a coarse grid at the tokens of that grid alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.cpu import convolution_is_quicker

STRIP = 2**22  # numbers of V_4 at a time


class SemanticMap:
    """S of B images: `logits` are its products with mask embeddings, `logits_on` the same on a coarser grid."""

    def __init__(self, features: Tensor, convolution: nn.Conv2d | None = None):
        """features: V at stride 4 (B, d, h, w) before `convolution` (3 x 3), or S itself where that is None."""
        self.features, self.convolution = features, convolution
        self.fold = False
        self._differentiable = torch.is_grad_enabled()
        self._map = features if convolution is None else None
        self._resized: dict[tuple[int, int], Tensor] = {}

    def plan(self, masks: int) -> None:
        """Folds the convolution if `masks`, all that will be asked of `logits`, are few beside its own d channels.

        The coarse grids then cost half of S (measured), so the limit is d / 2 masks an image. On a GPU a batch is not
        folded: its images would go one by one.
        """
        images, width = self.features.shape[:2]
        several = images > 1 and self.features.is_cuda
        self.fold = self.convolution is not None and not several and masks / images <= width / 2

    def map(self) -> Tensor:
        """S itself, (B, d, h, w)."""
        if self._map is None:
            # `logits_on` may be the first to ask, which has no gradient: `logits` must find one all the same
            with torch.set_grad_enabled(self._differentiable):
                self._map = self.convolution(self.features)
        return self._map

    def logits(self, embeddings: Tensor, image_index: Tensor) -> Tensor:
        """mu . S for embeddings (P, e, d) of the images (P,): (P, e, h, w)."""
        return self._folded(embeddings, image_index) if self.fold else _product(embeddings, self.map(), image_index)

    def logits_on(self, grid: tuple[int, int], embeddings: Tensor, image_index: Tensor) -> Tensor:
        """`logits` resized bilinearly to `grid`, (P, e, grid tokens), without a gradient.

        S is resized once per grid, not each layer's masks.
        """
        with torch.no_grad():
            if grid not in self._resized:
                stride = _stride(self.features, grid)
                folded = self.fold and stride is not None
                self._resized[grid] = self._convolved_on(stride) if folded else _resize(self.map(), grid, stride)
            return _product(embeddings, self._resized[grid], image_index).flatten(2)

    def _convolved_on(self, stride: int) -> Tensor:
        """S resized to a grid of this stride: the convolution of 2 x 2 means of V_4, at the tokens of the grid only.

        On a CPU some rows of the grid at a time, so that their means are no map of their own.
        """
        count = self.features.shape[-2] // stride
        pixels = self.features[:, :, 0].numel() * stride
        step = count if self.features.is_cuda else max(1, STRIP // pixels)
        parts = [self._rows_on(stride, row, min(step, count - row)) for row in range(0, count, step)]
        return torch.cat(parts, dim=2)

    def _rows_on(self, stride: int, row: int, count: int) -> Tensor:
        height, first = self.features.shape[-2], stride // 2 - 2  # a token is made of 4 x 4 pixels from its `first` on
        top, bottom = row * stride + first, (row + count - 1) * stride + first + 4
        pixels = self.features[:, :, max(top, 0) : bottom, max(first, 0) :]
        if top < 0 or bottom > height:
            pixels = F.pad(pixels, (0, 0, max(-top, 0), max(bottom - height, 0)))
        means = F.avg_pool2d(pixels, 2, stride=1, padding=(0, max(-first, 0)))
        return F.conv2d(means, self.convolution.weight, self.convolution.bias, stride)

    def _folded(self, embeddings: Tensor, image_index: Tensor) -> Tensor:
        count, (weight, bias) = embeddings.shape[1], (self.convolution.weight, self.convolution.bias)
        kernels = (embeddings @ weight.flatten(1)).unflatten(-1, weight.shape[1:])  # (P, e, d, 3, 3)
        biases = embeddings @ bias

        def convolve(image: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
            return F.conv2d(image, kernels.flatten(0, 1), biases.flatten(), padding=1)[0].unflatten(0, (-1, count))

        if len(self.features) == 1:
            return convolve(self.features, kernels, biases)
        order = image_index.argsort(stable=True)
        prompts = image_index.bincount(minlength=len(self.features)).tolist()
        per_image = zip(
            self.features.split(1), kernels[order].split(prompts), biases[order].split(prompts), strict=True
        )
        return torch.cat([convolve(*image) for image in per_image if len(image[-1])])[order.argsort()]


def _product(embeddings: Tensor, maps: Tensor, image_index: Tensor) -> Tensor:
    """(P, e, d) . (B, d, h, w) of each prompt's image -> (P, e, h, w)."""
    if len(maps) == 1 and convolution_is_quicker(maps):
        return F.conv2d(maps, embeddings.flatten(0, 1)[..., None, None])[0].unflatten(0, embeddings.shape[:2])
    size, maps = maps.shape[-2:], maps.flatten(2)
    if len(maps) == 1:
        return (embeddings.flatten(0, 1) @ maps[0]).unflatten(1, size).unflatten(0, embeddings.shape[:2])
    return (embeddings @ maps[image_index]).unflatten(-1, size)


def _stride(maps: Tensor, grid: tuple[int, int]) -> int | None:
    """By what even number `grid` is coarser than `maps` in both directions; None where it is not."""
    (height, width), (rows, columns) = maps.shape[-2:], grid
    stride = height // rows
    return stride if stride % 2 == 0 and (rows * stride, columns * stride) == (height, width) else None


def _resize(maps: Tensor, grid: tuple[int, int], stride: int | None) -> Tensor:
    """Bilinear resizing (align_corners=False); by an even number it is the mean of the 2 x 2 central pixels."""
    if stride is None:
        return F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
    a, b = stride // 2 - 1, stride // 2
    top, bottom = maps[..., a::stride, :], maps[..., b::stride, :]
    mean = top[..., a::stride] + top[..., b::stride]
    mean += bottom[..., a::stride]
    mean += bottom[..., b::stride]
    return mean.div_(4)
