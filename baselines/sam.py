"""SAM (text): segment-anything's own mask decoder on the shared features, prompted by text.

A map of the shared pyramid takes the place of SAM's image embedding; projected text tokens take the place of points and
boxes. No object of the prompt encoder is used but its random Fourier position and its "no mask".
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.multimask import best_mask, freeze_unasked, multimask_loss
from baselines.text_prompt import TextPrompt
from bench.interface import Batch
from models.config import ModelConfig
from models.segmenter import ImageEncoder, ImageFeatures

# SAM's and SAM 2's own sizes at every profile: the decoders are compared as they are
WIDTH = 256
TWO_WAY = {"depth": 2, "embedding_dim": WIDTH, "num_heads": 8, "mlp_dim": 2048}
GRID = 64  # tokens per side of SAM's image embedding, at 1024 px
PROMPTS_ON_CPU = 8  # at a time: what is computed on the way then stays in the cache


def embedding_stride(image_size: int) -> int:
    """The stride of the image embedding at `image_size` px: 16, or 8 where that gives at most SAM's 64 x 64 tokens.

    16 at 1024 px, as published. Smaller images would have fewer tokens than SAM was made for, and small objects less
    than one each. Stride 4, which has 64 x 64 tokens at 256 px, is not offered: a training step takes more than
    6 x as long as BoltzFormer's, with stride 8 1.9 x, with stride 16 0.75 x (laptop profile, one CPU core).
    """
    return 8 if image_size <= 8 * GRID else 16


class Sam(nn.Module):
    """One mask per prompt: SAM's first mask token (multimask_output=False).

    stride: of the image embedding, 16 or 8; pooled: one token per prompt instead of all.
    """

    multimask = False

    def __init__(self, backbone: str, config: ModelConfig, stride: int = 16, pooled: bool = False):
        super().__init__()
        self.level = {16: 1, 8: 2}[stride]  # of ImageFeatures.visual
        self.image_encoder = ImageEncoder(backbone, config, finest=stride)
        self.text_prompt = TextPrompt(config, WIDTH, pooled)
        self.image_projection = nn.Conv2d(config.width, WIDTH, 1)
        self.position = PositionEmbeddingRandom(WIDTH // 2)
        self.no_mask = nn.Embedding(1, WIDTH)
        self.mask_decoder = MaskDecoder(
            transformer_dim=WIDTH, transformer=TwoWayTransformer(**TWO_WAY), num_multimask_outputs=3
        )
        freeze_unasked(self.mask_decoder, self.multimask)

    def forward(
        self,
        images: Tensor,
        prompts: list[str],
        image_index: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """RGB (B, 3, H, W) in 0..255, P prompts, (P,) int64 -> logits (P, 4 H / stride, 4 W / stride)."""
        return self.decode(self.image_encoder(images), self.text_prompt(prompts), image_index)

    def decode(self, features: ImageFeatures, sparse: Tensor, image_index: Tensor) -> Tensor:
        """`forward` from the features of its images and the sparse prompts (P, tokens, WIDTH) on."""
        masks, _ = self.candidates(features, sparse, image_index)
        return masks[:, 0]

    def candidates(self, features: ImageFeatures, sparse: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """The package's masks (P, M, h, w) and their predicted IoU (P, M); M is 3 if multimask, else 1."""
        embedding = self.image_projection(features.visual[self.level])
        grid = embedding.shape[-2:]
        # Under autocast fp32 terms would make all of the image's tokens fp32, to be cast again by every layer.
        no_mask = self.no_mask.weight.reshape(1, -1, 1, 1).expand(-1, -1, *grid).to(embedding.dtype)
        position = self.position(grid)[None].to(embedding.dtype)
        at_once = len(sparse) if embedding.is_cuda else PROMPTS_ON_CPU
        # The decoder repeats one image embedding over the prompts and adds to it a dense embedding of each prompt.
        # With the two in each other's place their sum is the same, and prompts of many images go in one call.
        calls = [
            self.mask_decoder(
                image_embeddings=no_mask,
                image_pe=position,
                sparse_prompt_embeddings=tokens,
                dense_prompt_embeddings=embedding[images],
                multimask_output=self.multimask,
            )
            for tokens, images in zip(sparse.split(at_once), image_index.split(at_once), strict=True)
        ]
        masks, quality = (torch.cat(parts) for parts in zip(*calls, strict=True))
        return masks, quality


class SamMultimask(Sam):
    """Three masks per prompt, which may mean several things; the one of the highest predicted IoU is the answer."""

    multimask = True

    def decode(self, features: ImageFeatures, sparse: Tensor, image_index: Tensor) -> Tensor:
        """`forward` from the features of its images and the sparse prompts (P, tokens, WIDTH) on."""
        return best_mask(*self.candidates(features, sparse, image_index))

    def training_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Dice and binary cross-entropy of the best of three masks, squared error of the predicted IoU"""
        features, sparse = self.image_encoder(batch.images), self.text_prompt(batch.prompts)
        return multimask_loss(*self.candidates(features, sparse, batch.image_index), batch.masks, F.mse_loss)
