"""SAM (text): segment-anything's own mask decoder on the shared features, prompted by text.

The stride-16 features take the place of SAM's image embedding, as there; projected text tokens take the place of
points and boxes. No object of the prompt encoder is used but its random Fourier position and its "no mask".
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor, nn

from baselines.text_prompt import TextPrompt
from models.config import ModelConfig
from models.segmenter import ImageEncoder, ImageFeatures

# SAM's and SAM 2's own sizes at every profile: the decoders are compared as they are
WIDTH = 256
TWO_WAY = {"depth": 2, "embedding_dim": WIDTH, "num_heads": 8, "mlp_dim": 2048}


class Sam(nn.Module):
    """One mask per prompt: SAM's first mask token (multimask_output=False)."""

    def __init__(self, backbone: str, config: ModelConfig):
        super().__init__()
        self.image_encoder = ImageEncoder(backbone, config, finest=16)
        self.text_prompt = TextPrompt(config, WIDTH)
        self.image_projection = nn.Conv2d(config.width, WIDTH, 1)
        self.position = PositionEmbeddingRandom(WIDTH // 2)
        self.no_mask = nn.Embedding(1, WIDTH)
        self.mask_decoder = MaskDecoder(
            transformer_dim=WIDTH, transformer=TwoWayTransformer(**TWO_WAY), num_multimask_outputs=3
        )

    def forward(
        self,
        images: Tensor,
        prompts: list[str],
        image_index: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """RGB (B, 3, H, W) in 0..255, P prompts, (P,) int64 -> logits (P, H / 4, W / 4)."""
        return self.decode(self.image_encoder(images), self.text_prompt(prompts), image_index)

    def decode(self, features: ImageFeatures, sparse: Tensor, image_index: Tensor) -> Tensor:
        """`forward` from the features of its images and the sparse prompts (P, TOKENS, WIDTH) on."""
        embedding = self.image_projection(features.visual[1])
        grid = embedding.shape[-2:]
        position = self.position(grid)[None]
        dense = self.no_mask.weight.reshape(1, -1, 1, 1)
        masks: dict[int, Tensor] = {}
        # the package's decoder repeats its image embedding over the prompts, so it takes one image at a time
        for image in image_index.unique().tolist():
            rows = (image_index == image).nonzero().flatten()
            low_resolution, _ = self.mask_decoder(
                image_embeddings=embedding[image : image + 1],
                image_pe=position,
                sparse_prompt_embeddings=sparse[rows],
                dense_prompt_embeddings=dense.expand(len(rows), -1, *grid),
                multimask_output=False,
            )
            masks.update(zip(rows.tolist(), low_resolution[:, 0], strict=True))
        return torch.stack([masks[row] for row in range(len(sparse))])
