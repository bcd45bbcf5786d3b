"""The assembly: image encoder and text encoder, shared by every decoder, and BoltzFormer itself (Fig. 1)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.backbones import IMAGENET, PixelStatistics, build_backbone, normalise
from models.boltzmann import Draws
from models.config import ModelConfig
from models.cpu import quick
from models.decoder import Decoder, TokenChoice
from models.pigma import PiGMA
from models.pixel_decoder import PixelDecoder
from models.semantic import SemanticMap
from models.text_encoder import TextEncoder


@contextmanager
def seeded(part: str) -> Iterator[None]:
    """Draws the initial weights of a shared part from a seed of its own, made of torch's seed and the part's name.

    With one seed, every decoder thus starts from the same ones, whatever else it builds and in what order. The draws
    that follow are as if there had been none inside. For the CPU's generator.
    """
    seed = hashlib.sha256(f"{torch.initial_seed()} {part}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(seed[:8], "little"))
        yield


@dataclass
class ImageFeatures:
    """What a decoder sees of B images.

    images: normalised (B, 3, H, W); visual: V at strides 32, 16, 8, each (B, d, H / s, W / s); semantic: S, which is
    (B, d, H / 4, W / 4), None where the encoder stops before stride 4.
    """

    images: Tensor
    visual: list[Tensor]
    semantic: SemanticMap | None


class ImageEncoder(nn.Module):
    """Backbone and pixel decoder down to stride `finest`: run once per image, whatever the number of prompts.

    The initial weights are a function of torch's seed alone; what two values of `finest` share is equal.
    """

    def __init__(self, backbone: str, config: ModelConfig, finest: int = 4, pixels: PixelStatistics = IMAGENET):
        super().__init__()
        self.pixels = pixels
        self.recompute = False  # gradient checkpointing: the backward pass computes what it needs once more
        with seeded("backbone"):
            self.backbone = build_backbone(backbone)
        with seeded("pixel decoder"):
            self.pixel_decoder = PixelDecoder(
                self.backbone.channels, config.width, config.heads, config.feedforward, config.pixel_layers, finest
            )
        # features are read token by token, which are rows in memory this way; convolutions like it too
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> ImageFeatures:
        """RGB (B, 3, H, W) in 0..255."""
        images = normalise(images, self.pixels)
        recompute = self.recompute and torch.is_grad_enabled()
        run = partial(checkpoint, use_reentrant=False) if recompute else lambda part, inputs: part(inputs)
        with quick(images):
            maps = [m.contiguous(memory_format=torch.channels_last) for m in run(self.backbone, images)]
            pyramid = run(self.pixel_decoder.pyramid, maps)
        visual, semantic = self.pixel_decoder.split(pyramid)
        return ImageFeatures(images, visual, semantic)


def build_text_encoder(config: ModelConfig) -> TextEncoder:
    """The text encoder every decoder of a comparison uses; its tokens have the decoder's width.

    Its initial weights are a function of torch's seed alone.
    """
    with seeded("text encoder"):
        return TextEncoder(
            config.text_width, config.text_layers, config.text_heads, config.width, config.context_length
        )


class BoltzFormer(nn.Module):
    """Image and text in, mask logits out; its decoder's attention is chosen by the config."""

    def __init__(self, backbone: str, config: ModelConfig):
        super().__init__()
        self.image_encoder = ImageEncoder(backbone, config)
        self.text_encoder = build_text_encoder(config)
        self.decoder = Decoder(config)
        self.pigma = PiGMA(config.queries, config.pigma_channels) if config.pigma else None

    def forward(
        self,
        images: Tensor,
        prompts: list[str],
        image_index: Tensor,
        generator: Draws = None,
        choose: TokenChoice | None = None,
    ) -> Tensor:
        """RGB (B, 3, H, W) in 0..255, P prompts, (P,) int64 -> logits (P, H / 2, W / 2).

        Without PiGMA the logits are (P, H / 4, W / 4). `generator`, one or one per prompt, is the only source of
        randomness.
        """
        return self.decode(self.image_encoder(images), prompts, image_index, generator, choose)

    def decode(
        self,
        features: ImageFeatures,
        prompts: list[str],
        image_index: Tensor,
        generator: Draws = None,
        choose: TokenChoice | None = None,
    ) -> Tensor:
        """`forward` from the features of its images on: they serve any number of prompts."""
        text, padding = self.text_encoder(prompts)
        features.semantic.plan(len(prompts) * (1 if self.pigma is None else self.pigma.masks))
        embeddings = self.decoder(features.visual, features.semantic, text, padding, image_index, generator, choose)
        if self.pigma is None:  # Eq. 7 alone: the mean of the candidate masks is the mask of the mean embedding
            return features.semantic.logits(embeddings.mean(1, keepdim=True), image_index).squeeze(1)
        return self.pigma(embeddings, features.semantic, features.images, image_index)
