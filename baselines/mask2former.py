"""Mask2Former (text): transformers' pixel decoder and masked-attention decoder on the shared backbone.

Its own pixel decoder (multi-scale deformable attention) takes the place of the shared one, so of the image encoder
only the backbone is shared. What asks for an object is the text: every learned query starts from its own content plus
the projected end-of-text token. Its classes are two, the prompt's object and nothing.

Trained as its authors do (Cheng et al., CVPR 2022, section 3.2 and 4.1): the query of the lowest cost gets the target,
mask, Dice and class loss after every decoder layer, at 12,544 points (`Mask2FormerLoss`). The answer is the mask of the
query with the highest score.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)

from baselines.multimask import best_mask
from baselines.text_prompt import TextPrompt
from bench.interface import Batch
from models.backbones import IMAGENET, STRIDES, build_backbone, normalise
from models.config import ModelConfig
from models.segmenter import seeded


def package_config(config: ModelConfig) -> Mask2FormerConfig:
    """Our sizes under the package's names; all else, the weights of the losses too, is the authors'.

    It counts the masks of the learned queries as a layer. Its pixel decoder has as many layers as the shared one.
    """
    return Mask2FormerConfig(
        feature_size=config.width,
        mask_feature_size=config.width,
        hidden_dim=config.width,
        encoder_feedforward_dim=config.feedforward,
        dim_feedforward=config.feedforward,
        encoder_layers=config.pixel_layers,
        decoder_layers=config.layers + 1,
        num_attention_heads=config.heads,
        num_queries=config.queries,
        feature_strides=STRIDES,
        num_labels=1,
    )


class Head(Mask2FormerPreTrainedModel):
    """The package's modules with its initial weights: pixel decoder, transformer decoder, a score per query."""

    def __init__(self, config: Mask2FormerConfig, channels: list[int]):
        super().__init__(config)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You'd better set embed_dim")  # about a CUDA kernel not in use
            self.pixel_decoder = Mask2FormerPixelDecoder(config, channels)
        self.transformer = Mask2FormerTransformerModule(config.feature_size, config)
        self.class_predictor = nn.Linear(config.hidden_dim, 2)
        self.post_init()


class Backbone(nn.Module):
    """The shared backbone alone; the initial weights are those it has in `models.segmenter.ImageEncoder`."""

    def __init__(self, backbone: str):
        super().__init__()
        self.recompute = False  # gradient checkpointing: the backward pass computes the maps once more
        with seeded("backbone"):
            self.backbone = build_backbone(backbone)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """RGB (B, 3, H, W) in 0..255 -> maps (B, C_i, H / s, W / s) for s in 4, 8, 16, 32."""
        images = normalise(images, IMAGENET)
        if self.recompute and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(self.backbone, images, use_reentrant=False)
        return self.backbone(images)


class Mask2Former(nn.Module):
    """Masks at stride 4 from `queries` queries, which the prompt's text is added to."""

    def __init__(self, backbone: str, config: ModelConfig):
        super().__init__()
        self.image_encoder = Backbone(backbone)
        self.text_prompt = TextPrompt(config, config.width, pooled=True)
        settings = package_config(config)
        self.head = Head(settings, self.image_encoder.backbone.channels)
        self.weights = {
            "loss_cross_entropy": settings.class_weight,
            "loss_mask": settings.mask_weight,
            "loss_dice": settings.dice_weight,
        }
        self.criterion = Mask2FormerLoss(settings, self.weights)

    def forward(
        self,
        images: Tensor,
        prompts: list[str],
        image_index: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """RGB (B, 3, H, W) in 0..255, P prompts, (P,) int64 -> logits (P, H, W).

        Resized bilinearly, as its loss reads them at points: with another kernel objects of a few pixels are lost.
        """
        logits = self.decode(self.image_encoder(images), self.text_prompt(prompts), image_index)
        return F.interpolate(logits.float()[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]

    def decode(self, maps: list[Tensor], text: Tensor, image_index: Tensor) -> Tensor:
        """From the backbone's maps and the projected text (P, 1, width) to logits (P, H / 4, W / 4)."""
        masks, classes = self.candidates(maps, text, image_index)
        score = classes[-1][..., 0] - classes[-1][..., 1]
        return best_mask(masks[-1], score)

    def candidates(self, maps: list[Tensor], text: Tensor, image_index: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """After each of L + 1 steps: mask logits (P, m, H / 4, W / 4) and class logits (P, m, 2), object then nothing.

        The pixel decoder runs once per image and, as in the authors' code, in fp32.
        """
        transformer = self.head.transformer
        with torch.autocast(text.device.type, enabled=False):
            pixels = self.head.pixel_decoder([level.float() for level in maps])
        levels = pixels.multi_scale_features
        # tokens first: (N, P, width)
        features, positions = [], []
        for level, project, embedding in zip(
            levels, transformer.input_projections, transformer.level_embed.weight, strict=True
        ):
            tokens = project(level).flatten(2) + embedding[:, None]
            features.append(tokens.permute(2, 0, 1)[:, image_index])
            position = transformer.position_embedder((1, *level.shape[1:]), level.device, torch.float32)
            positions.append(position.flatten(2).permute(2, 0, 1))
        count = len(image_index)
        output = transformer.decoder(
            inputs_embeds=transformer.queries_features.weight[:, None] + text.transpose(0, 1),
            multi_stage_positional_embeddings=positions,
            pixel_embeddings=pixels.mask_features[image_index],
            encoder_hidden_states=features,
            query_position_embeddings=transformer.queries_embedder.weight[:, None].expand(-1, count, -1),
            feature_size_list=[level.shape[-2:] for level in levels],
            return_dict=True,
        )
        classes = [self.head.class_predictor(hidden.transpose(0, 1)) for hidden in output.intermediate_hidden_states]
        return list(output.masks_queries_logits), classes

    def training_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mask2Former's: Dice, binary cross-entropy and class loss of the matched query, after every layer"""
        text = self.text_prompt(batch.prompts)
        masks, classes = self.candidates(self.image_encoder(batch.images), text, batch.image_index)
        targets = list(batch.masks[:, None].float())
        object_class = [torch.zeros(1, dtype=torch.int64, device=text.device)] * len(targets)
        steps = [
            {"masks_queries_logits": m.float(), "class_queries_logits": c.float()}
            for m, c in zip(masks, classes, strict=True)
        ]
        # the package draws its points from torch's own generators
        devices = [text.device] if text.is_cuda else []
        with torch.random.fork_rng(devices), torch.autocast(text.device.type, enabled=False):
            torch.manual_seed(torch.randint(2**31, (), generator=generator, device=generator.device).item())
            losses = self.criterion(
                **steps[-1], mask_labels=targets, class_labels=object_class, auxiliary_predictions=steps[:-1]
            )
        kind = lambda name: next(kind for kind in self.weights if name.startswith(kind))  # noqa: E731
        return sum(self.weights[kind(name)] * loss for name, loss in losses.items())
