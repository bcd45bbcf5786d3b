"""SAM 2 (text, image version): sam2's own mask decoder with high-resolution features, prompted by text.

Stride-16 features as the image embedding, stride 8 and S (stride 4) as the high-resolution features, projected text
tokens as sparse prompts. Multimask output and its stability switch are off; the object score is not used.
"""

from __future__ import annotations

import torch
from sam2.modeling.position_encoding import PositionEmbeddingRandom
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import TwoWayTransformer
from torch import Tensor, nn

from baselines.sam import TWO_WAY, WIDTH
from baselines.text_prompt import TextPrompt
from models.config import ModelConfig
from models.segmenter import ImageEncoder, ImageFeatures


class Sam2(nn.Module):
    """One mask per prompt: SAM 2's first mask token."""

    def __init__(self, backbone: str, config: ModelConfig):
        super().__init__()
        self.image_encoder = ImageEncoder(backbone, config)
        self.text_prompt = TextPrompt(config, WIDTH)
        self.projections = nn.ModuleList(nn.Conv2d(config.width, WIDTH, 1) for _ in range(3))
        self.position = PositionEmbeddingRandom(WIDTH // 2)
        self.no_mask = nn.Embedding(1, WIDTH)
        self.mask_decoder = MaskDecoder(
            transformer_dim=WIDTH,
            transformer=TwoWayTransformer(**TWO_WAY),
            num_multimask_outputs=3,
            use_high_res_features=True,
            iou_prediction_use_sigmoid=True,
            dynamic_multimask_via_stability=False,
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
        maps = (features.visual[1], features.visual[2], features.semantic.map())
        embedding, stride8, stride4 = (p(m) for p, m in zip(self.projections, maps, strict=True))
        grid = embedding.shape[-2:]
        high_resolution = [self.mask_decoder.conv_s0(stride4), self.mask_decoder.conv_s1(stride8)]
        masks, _, _, _ = self.mask_decoder(
            image_embeddings=embedding[image_index],
            image_pe=self.position(grid)[None],
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=self.no_mask.weight.reshape(1, -1, 1, 1).expand(len(sparse), -1, *grid),
            multimask_output=False,
            repeat_image=False,
            high_res_features=[m[image_index] for m in high_resolution],
        )
        return masks[:, 0]
