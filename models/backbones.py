"""Image backbones from timm: four feature maps of strides 4, 8, 16 and 32 (appendix A.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from timm.layers import LayerNorm2d
from timm.models.focalnet import FocalNet
from torch import Tensor, nn
from torch.nn import functional as F

STRIDES = (4, 8, 16, 32)


class FeaturePyramidNeck(nn.Module):
    """SAM 2's neck: every level to one width; the two coarsest levels flow top-down (nearest)."""

    def __init__(self, channels: list[int], width: int = 256):
        super().__init__()
        self.channels = [width] * len(channels)
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Four maps (B, C_i, H_i, W_i), fine to coarse -> four maps (B, width, H_i, W_i)."""
        out = [conv(x) for conv, x in zip(self.lateral, maps, strict=True)]
        out[2] = out[2] + F.interpolate(out[3], scale_factor=2.0, mode="nearest")
        return out


class OutputNorms(nn.Module):
    """X-Decoder's end of FocalNet: a LayerNorm over the channels of each map, which the next stage does not see."""

    def __init__(self, channels: list[int]):
        super().__init__()
        self.channels = channels
        self.norms = nn.ModuleList(LayerNorm2d(c, eps=1e-5) for c in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Four maps (B, C_i, H_i, W_i) -> the same, normalised."""
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)]


class Backbone(nn.Module):
    """A timm backbone, padded to whole patches where it needs them, with an optional neck.

    `channels` are the widths of the four maps it returns.
    """

    def __init__(
        self,
        trunk: nn.Module,
        channels: list[int],
        features: Callable[[nn.Module, Tensor], list[Tensor]],
        neck: FeaturePyramidNeck | OutputNorms | None = None,
    ):
        super().__init__()
        self.trunk, self.neck, self._features = trunk, neck, features
        self.channels = neck.channels if neck is not None else channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W), normalised -> maps (B, C_i, ceil(H / s), ceil(W / s)) for s in 4, 8, 16, 32."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % 32, 0, -height % 32))
        maps = self._features(self.trunk, padded)
        if self.neck is not None:
            maps = self.neck(maps)
        return [m[..., : math.ceil(height / s), : math.ceil(width / s)] for m, s in zip(maps, STRIDES, strict=True)]


def _call(trunk: nn.Module, images: Tensor) -> list[Tensor]:
    return trunk(images)


def _intermediates(trunk: nn.Module, images: Tensor) -> list[Tensor]:
    return trunk.forward_intermediates(images, intermediates_only=True)


def hiera(name: str, neck: bool = True, **overrides) -> Backbone:
    """timm's SAM 2 Hiera, by default with the neck; `overrides` change its sizes."""
    trunk = timm.create_model(name, features_only=True, pretrained=False, **overrides)
    channels = trunk.feature_info.channels()
    return Backbone(trunk, channels, _call, FeaturePyramidNeck(channels) if neck else None)


def _focal(**sizes) -> Backbone:
    trunk = FocalNet(num_classes=0, **sizes)
    trunk.norm = nn.Identity()  # the classifier's
    channels = [info["num_chs"] for info in trunk.feature_info]
    return Backbone(trunk, channels, _intermediates, OutputNorms(channels))


# The paper's three, two mid sizes, and two for CPUs. Hiera is SAM 2's variant.
BACKBONES: dict[str, Callable[[], Backbone]] = {
    "hiera_xt": lambda: hiera(
        "sam2_hiera_tiny", neck=False, embed_dim=16, stages=(1, 1, 2, 1), num_heads=1, global_att_blocks=(3,)
    ),
    "focal_xt": lambda: _focal(embed_dim=16, depths=(1, 1, 2, 1)),
    "hiera_t": lambda: hiera("sam2_hiera_tiny"),
    "hiera_s": lambda: hiera("sam2_hiera_small"),
    "hiera_bp": lambda: hiera("sam2_hiera_base_plus"),
    "focal_l": lambda: _focal(
        embed_dim=192,
        depths=(2, 2, 18, 2),
        focal_levels=(4, 4, 4, 4),
        focal_windows=(3, 3, 3, 3),
        use_overlap_down=True,
        use_post_norm=True,
        layerscale_value=1e-4,
        normalize_modulator=True,
        drop_path_rate=0.3,
    ),
}


def build_backbone(name: str) -> Backbone:
    """The backbone `name` with random weights; a KeyError is a bug, names are checked where users give them."""
    return BACKBONES[name]()


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation of the red, green and blue pixels (0..255) that a backbone was trained on."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


IMAGENET = PixelStatistics((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # the authors' input


def normalise(images: Tensor, pixels: PixelStatistics = IMAGENET) -> Tensor:
    """RGB (B, 3, H, W) in 0..255 -> mean 0 and deviation 1 over `pixels`, float32."""
    mean = torch.tensor(pixels.mean, device=images.device).view(1, 3, 1, 1)
    deviation = torch.tensor(pixels.deviation, device=images.device).view(1, 3, 1, 1)
    return (images.float() - mean) / deviation
