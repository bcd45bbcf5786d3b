"""The augmentation of appendix A.5, on whole batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

PROBABILITY, SHIFT, SCALE = 0.5, 0.1, 0.1


def augment(images: Tensor, masks: Tensor, image_index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Transforms each image with probability 0.5, its masks with it.

    A rotation by 0, 90, 180 or 270 degrees, a crop whose centre shifts by up to 10% of the side in each direction
    and whose side scales by up to 10%, all uniform. images: (B, 3, S, S); masks: (P, S, S) of 0 and 1;
    image_index: (P,). Returns the same shapes.
    """
    number = len(images)
    chosen = torch.rand(number, generator=generator) < PROBABILITY
    angle = torch.randint(0, 4, (number,), generator=generator) * (math.pi / 2)
    shift = (torch.rand(number, 2, generator=generator) * 2 - 1) * SHIFT * 2  # the frame is 2 wide
    scale = 1 + (torch.rand(number, generator=generator) * 2 - 1) * SCALE
    theta = torch.zeros(number, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * scale, -angle.sin() * scale
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * scale, angle.cos() * scale
    theta[:, :, 2] = shift

    images, masks = images.clone(), masks.clone()
    rows = chosen.nonzero().flatten()
    if len(rows):
        images[rows] = _warp(images[rows], theta[rows])
    rows = chosen[image_index].nonzero().flatten()
    if len(rows):
        cover = _warp(masks[rows, None], theta[image_index[rows]])[:, 0]
        # an object of a pixel or two keeps its best covered pixels instead of falling between the grid's
        level = cover.amax((1, 2), keepdim=True).clamp(min=1e-6, max=0.5)
        masks[rows] = (cover >= level).to(masks.dtype)
    return images, masks


def _warp(x: Tensor, theta: Tensor) -> Tensor:
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
