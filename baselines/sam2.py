"""SAM 2 (text): sam2's own mask decoder on the shared features, prompted by text.

Stride-16 features as the image embedding, stride 8 and S (stride 4) as the high-resolution features, projected text
tokens as sparse prompts; logits have stride 4 at every image size.

The object score (`pred_obj_scores`) is off. It tells an object that is hidden in a frame and empties its mask; every
prompt here has an object, so its loss would teach it to say yes always. The stability switch
(`dynamic_multimask_via_stability`) is off: in evaluation it takes the best of three masks where the single one is
unstable, which needs both kinds of output trained. sam2 trains the single one on prompts of many clicks; a text prompt
is one prompt, so a model here is trained for one kind, either `Sam2` or `Sam2Multimask`.
"""

from __future__ import annotations

import torch
from sam2.modeling.position_encoding import PositionEmbeddingRandom
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.multimask import best_mask, freeze_unasked, multimask_loss
from baselines.sam import TWO_WAY, WIDTH
from baselines.text_prompt import TextPrompt
from bench.interface import Batch
from models.config import ModelConfig
from models.segmenter import ImageEncoder, ImageFeatures


class Sam2(nn.Module):
    """One mask per prompt: SAM 2's first mask token. pooled: one token per prompt instead of all."""

    multimask = False

    def __init__(self, backbone: str, config: ModelConfig, pooled: bool = False):
        super().__init__()
        self.image_encoder = ImageEncoder(backbone, config)
        self.text_prompt = TextPrompt(config, WIDTH, pooled)
        self.projections = nn.ModuleList(nn.Conv2d(config.width, WIDTH, 1) for _ in range(3))
        self.position = PositionEmbeddingRandom(WIDTH // 2)
        self.no_mask = nn.Embedding(1, WIDTH)
        self.mask_decoder = MaskDecoder(
            transformer_dim=WIDTH,
            transformer=TwoWayTransformer(**TWO_WAY),
            num_multimask_outputs=3,
            use_high_res_features=True,
            iou_prediction_use_sigmoid=True,
            pred_obj_scores=False,
            dynamic_multimask_via_stability=False,
        )
        freeze_unasked(self.mask_decoder, self.multimask)

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
        """`forward` from the features of its images and the sparse prompts (P, tokens, WIDTH) on."""
        masks, _ = self.candidates(features, sparse, image_index)
        return masks[:, 0]

    def candidates(self, features: ImageFeatures, sparse: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """The package's masks (P, M, h, w) and their predicted IoU (P, M); M is 3 if multimask, else 1."""
        maps = (features.visual[1], features.visual[2], features.semantic.map())
        embedding, stride8, stride4 = (p(m) for p, m in zip(self.projections, maps, strict=True))
        grid = embedding.shape[-2:]
        high_resolution = [self.mask_decoder.conv_s0(stride4), self.mask_decoder.conv_s1(stride8)]
        masks, quality, _, _ = self.mask_decoder(
            image_embeddings=embedding[image_index],
            image_pe=self.position(grid)[None],
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=self.no_mask.weight.reshape(1, -1, 1, 1).expand(len(sparse), -1, *grid),
            multimask_output=self.multimask,
            repeat_image=False,
            high_res_features=[m[image_index] for m in high_resolution],
        )
        return masks, quality


class Sam2Multimask(Sam2):
    """Three masks per prompt, which may mean several things; the one of the highest predicted IoU is the answer."""

    multimask = True

    def decode(self, features: ImageFeatures, sparse: Tensor, image_index: Tensor) -> Tensor:
        """`forward` from the features of its images and the sparse prompts (P, tokens, WIDTH) on."""
        return best_mask(*self.candidates(features, sparse, image_index))

    def training_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Dice and binary cross-entropy of the best of three masks, absolute error of the predicted IoU"""
        features, sparse = self.image_encoder(batch.images), self.text_prompt(batch.prompts)
        return multimask_loss(*self.candidates(features, sparse, batch.image_index), batch.masks, F.l1_loss)
