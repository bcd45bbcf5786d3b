"""SAM 3 (text): transformers' concept-prompted detector and mask head on the shared features.

The detector is a DETR (Carion et al., SAM 3: Segment Anything with Concepts, 2025, section 3): an encoder lets the
stride-16 features read the prompt's tokens, a decoder turns learned queries into boxes and scores, a presence token
says whether the concept is in the image at all, and the mask head makes the queries' masks at stride 4. SAM 3's image
and text encoders, 807 of its 840 million parameters, give way to those that every decoder here shares; its 8 million
for prompts by boxes are not there.

The answer is the mask of the query with the highest score. The presence logit is common to all queries of a prompt, so
it changes no choice; it is trained all the same, as is the box, which guides the decoder's attention.

Trained with the matcher, losses and weights of the authors' configurations (`sam3/train/configs/roboflow_v100`), but:

- A prompt has one target, the object's mask and its box, or none where a crop has lost the object.
- No one-to-many queries (DAC-DETR), which the package does not have, and no dropout: `generator` is the only source of
  randomness. No loss on the semantic head, as in those configurations.
- Dice has squared denominators and no smoothing, as in the loss of the other decoders here. In theirs, 1 - (2 I + 1) /
  (P + T + 1), an object of three pixels hardly counts: learning two images of 256 px by heart, it is found after 450
  steps, with ours within 125.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou, generalized_box_iou_loss, masks_to_boxes, sigmoid_focal_loss
from transformers import Sam3Config
from transformers.models.sam3.modeling_sam3 import (
    Sam3DetrDecoder,
    Sam3DetrEncoder,
    Sam3DotProductScoring,
    Sam3MaskDecoder,
    Sam3SinePositionEmbedding,
    inverse_sigmoid,
)

from baselines.multimask import best_mask
from bench.interface import Batch, Part
from bench.spec import RunSpec
from models.checkpoints import CheckpointError, LoadReport, load_published, match, read_checkpoint
from models.config import ModelConfig
from models.published_names import Kind, Rule
from models.segmenter import ImageEncoder, ImageFeatures, build_text_encoder

WIDTH = 256  # SAM 3's own
QUERIES = 200  # likewise; the class loss is a mean over so many, whatever their number
LOSS_WEIGHTS = {"class": 20.0, "presence": 20.0, "box": 5.0, "giou": 2.0, "mask": 200.0, "dice": 10.0}
COST_WEIGHTS = {"class": 2.0, "box": 5.0, "giou": 2.0}
POSITIVE_WEIGHT = 10.0  # of the one matched query against all the others

# The detector in a file of `Sam3Model`; in facebook/sam3, whose names are those of `Sam3VideoModel`, with a prefix.
WEIGHTS = Kind(
    "SAM 3",
    sign=r"(?:detector_model\.)?detr_decoder\.presence_token\.weight",
    fills=("decoder",),
    rules=(
        Rule(
            r"(?:detector_model\.)?((?:detr_encoder|detr_decoder|dot_product_scoring|mask_decoder)\..+)", r"decoder.\1"
        ),
    ),
    # its image and text encoders, prompts by boxes, and the tracker of objects in videos
    unused=r"(?:detector_model\.)?(?:vision_encoder|text_encoder|text_projection|geometry_encoder)\..+"
    r"|(?:tracker_model|tracker_neck)\..+",
)


def package_config(config: ModelConfig) -> Sam3Config:
    """SAM 3's own sizes for a model as wide as SAM 3 or wider, so that its weights fit; below, those of the model."""
    if config.width >= WIDTH:
        encoder = decoder = masks = {}
    else:
        common = {"hidden_size": config.width, "num_attention_heads": config.heads}
        encoder = common | {"intermediate_size": config.feedforward, "num_layers": config.pixel_layers}
        decoder = common | {"intermediate_size": config.feedforward, "num_layers": config.layers}
        decoder |= {"num_queries": config.queries}
        masks = common
    return Sam3Config(
        detr_encoder_config=encoder | {"dropout": 0.0},
        detr_decoder_config=decoder | {"dropout": 0.0},
        mask_decoder_config=masks,
    )


class Head(nn.Module):
    """The package's modules, by its names, with initial weights as in the authors' code.

    The package's own are for weights that are loaded: all of standard deviation 0.02, so that queries and their boxes
    would start nearly equal.
    """

    def __init__(self, config: Sam3Config):
        super().__init__()
        self.detr_encoder = Sam3DetrEncoder(config.detr_encoder_config)
        self.detr_decoder = Sam3DetrDecoder(config.detr_decoder_config)
        self.dot_product_scoring = Sam3DotProductScoring(config)
        self.mask_decoder = Sam3MaskDecoder(config.mask_decoder_config)
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for part in (self.detr_encoder, self.detr_decoder):
            for name, parameter in part.named_parameters():
                if parameter.ndim > 1 and not name.startswith(("box_head", "query_embed", "reference_points")):
                    nn.init.xavier_uniform_(parameter)
        # boxes start at the reference points; theirs exactly, by a zero that keeps the first gradient from the MLP
        nn.init.normal_(self.detr_decoder.box_head.layer3.weight, std=1e-3)
        nn.init.zeros_(self.detr_decoder.box_head.layer3.bias)
        # no part of any mask: the semantic head, and the stage of the pixel decoder beyond its finest map
        pixel_decoder = self.mask_decoder.pixel_decoder
        for unused in (self.mask_decoder.semantic_projection, pixel_decoder.conv_layers[2], pixel_decoder.norms[2]):
            unused.requires_grad_(False)


class Candidates(NamedTuple):
    """What L decoder layers find for P prompts by m queries, in float32.

    scores: logits (L, P, m); boxes: (L, P, m, 4), centre, width and height in parts of the image; presence: logits
    (L, P); masks: logits (P, m, h, w) of the last layer.
    """

    scores: Tensor
    boxes: Tensor
    presence: Tensor
    masks: Tensor


class Sam3(nn.Module):
    """Masks at stride 4; the encoder and the mask head's pixel decoder run once per prompt, as both read its text."""

    def __init__(self, backbone: str, config: ModelConfig):
        super().__init__()
        self.image_encoder = ImageEncoder(backbone, config)
        self.text_encoder = build_text_encoder(config)
        package = package_config(config)
        width = package.detr_encoder_config.hidden_size
        self.text_projection = nn.Linear(config.width, width)
        self.projections = nn.ModuleList(nn.Conv2d(config.width, width, 1) for _ in range(3))
        self.position = Sam3SinePositionEmbedding(width // 2, normalize=True)
        self.decoder = Head(package)

    def forward(
        self,
        images: Tensor,
        prompts: list[str],
        image_index: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """RGB (B, 3, H, W) in 0..255, P prompts, (P,) int64 -> logits (P, H, W).

        Resized bilinearly, as in its loss: with another kernel objects of a few pixels are lost.
        """
        logits = self.decode(self.image_encoder(images), prompts, image_index)
        return F.interpolate(logits[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]

    def decode(self, features: ImageFeatures, prompts: list[str], image_index: Tensor) -> Tensor:
        """From the features of the images to logits (P, H / 4, W / 4): the mask of the highest score."""
        tokens, padding = self.text_encoder(prompts)
        found = self.candidates(features, self.text_projection(tokens), ~padding, image_index)
        return best_mask(found.masks, found.scores[-1])

    def candidates(self, features: ImageFeatures, text: Tensor, valid: Tensor, image_index: Tensor) -> Candidates:
        """All queries of all layers, from the features and the projected text (P, T, width); valid: (P, T) bool."""
        levels = (features.semantic.map(), features.visual[2], features.visual[1])
        maps = [project(level)[image_index] for project, level in zip(self.projections, levels, strict=True)]
        stride16, head = maps[-1], self.decoder
        position = self.position((1, *stride16.shape[1:]), stride16.device, torch.float32)
        encoded = head.detr_encoder([stride16], text, [position], text_mask=valid)
        decoded = head.detr_decoder(
            vision_features=encoded.last_hidden_state,
            text_features=text,
            vision_pos_encoding=encoded.pos_embeds_flattened,
            text_mask=valid,
            spatial_shapes=encoded.spatial_shapes,
        )
        queries = decoded.intermediate_hidden_states
        masks = head.mask_decoder(queries[-1], maps, encoded.last_hidden_state, text, valid).pred_masks
        # a box of a few pixels is lost in bfloat16, and so is the difference of two scores
        with torch.autocast(text.device.type, enabled=False):
            offsets = head.detr_decoder.box_head(queries.float())
            boxes = (inverse_sigmoid(decoded.reference_boxes.float()) + offsets).sigmoid()
            scores = head.dot_product_scoring(queries.float(), text.float(), valid).squeeze(-1)
        return Candidates(scores, boxes, decoded.presence_logits.squeeze(-1).float(), masks.float())

    def training_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """SAM 3's: score, presence, box L1 and GIoU after every layer, focal and Dice loss of the matched mask"""
        tokens, padding = self.text_encoder(batch.prompts)
        features = self.image_encoder(batch.images)
        found = self.candidates(features, self.text_projection(tokens), ~padding, batch.image_index)
        with torch.autocast(tokens.device.type, enabled=False):
            return detection_loss(found, batch.masks.float(), batch.part)

    def load_own(self, path: Path) -> LoadReport:
        """The published weights of the detector and mask head; CheckpointError where the file does not fit."""
        return _of_decoder(load_published(self, path, WEIGHTS.fills, WEIGHTS))


def detection_loss(found: Candidates, target: Tensor, part: Part | None = None) -> Tensor:
    """The sum of all losses over layers, by LOSS_WEIGHTS; a scalar. target: (P, H, W) of 0 and 1, float32. Of a part
    of a batch, losses of objects are means over those that the whole batch has for so many prompts.

    A query is matched anew after every layer, by score and box. Score: binary cross-entropy whose target for the
    matched query is p^0.25 IoU^0.75 of its box, focal for the others. Where a target is empty only presence is trained.
    """
    _, prompts, queries = found.scores.shape
    there = target.flatten(1).any(1)
    if part is None or part.total == prompts:
        count = there.sum().clamp(min=1)
    else:
        count = max(1, part.objects) * prompts / part.total
    presence = sigmoid_focal_loss(found.presence, there.float().expand_as(found.presence), alpha=0.5, gamma=0)
    losses = {"presence": presence.mean(1).sum()}

    target = target[there]
    truth = target_boxes(target)[None, :, None]  # (1, n, 1, 4): of all layers and queries
    scores, boxes = found.scores[:, there], found.boxes[:, there]
    matched = matching_cost(scores, boxes, truth).argmin(-1, keepdim=True)  # (L, n, 1)
    box = boxes.gather(2, matched[..., None].expand(-1, -1, -1, 4))
    truth = truth.expand_as(box)
    losses["box"] = (box - truth).abs().sum() / count
    losses["giou"] = generalized_box_iou_loss(_corners(box), _corners(truth)).sum() / count

    score = scores.gather(2, matched)
    with torch.no_grad():
        iou = box_iou(_corners(box).flatten(0, -2), _corners(truth).flatten(0, -2)).diagonal().view_as(score)
        quality = (score.sigmoid() ** 0.25 * iou**0.75).clamp(min=0.01)
    positive = POSITIVE_WEIGHT * F.binary_cross_entropy_with_logits(score, quality, reduction="sum")
    negative = sigmoid_focal_loss(scores, torch.zeros_like(scores), alpha=-1, gamma=2)
    negative = negative.scatter(2, matched, 0.0).sum()
    losses["class"] = (positive + negative) / (max(queries, QUERIES) * prompts)

    each = torch.arange(len(target), device=target.device)
    mask = found.masks[there][each, matched[-1, :, 0]]
    mask = F.interpolate(mask[:, None], target.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    losses["mask"] = sigmoid_focal_loss(mask, target).mean((1, 2)).sum() / count
    probability = mask.sigmoid()
    overlap = 2 * (probability * target).sum((1, 2)) / (probability**2 + target).sum((1, 2))
    losses["dice"] = (1 - overlap).sum() / count
    return sum(LOSS_WEIGHTS[name] * loss for name, loss in losses.items())


@torch.no_grad()
def matching_cost(scores: Tensor, boxes: Tensor, truth: Tensor) -> Tensor:
    """The authors' matcher: focal cost of the score logits (..., m), L1 and GIoU of boxes (..., m, 4) -> (..., m).

    With one target per prompt the query of the lowest cost is the Hungarian assignment.
    """
    truth = truth.expand_as(boxes)
    one, zero = torch.ones_like(scores), torch.zeros_like(scores)
    costs = {
        "class": sigmoid_focal_loss(scores, one) - sigmoid_focal_loss(scores, zero),
        "box": (boxes - truth).abs().sum(-1),
        "giou": generalized_box_iou_loss(_corners(boxes), _corners(truth)),
    }
    return sum(COST_WEIGHTS[name] * cost for name, cost in costs.items())


def target_boxes(masks: Tensor) -> Tensor:
    """Masks (n, H, W), none empty -> (n, 4) centre, width and height in parts of the image; a pixel has width 1."""
    height, width = masks.shape[-2:]
    # torchvision counts to the last pixel, not to its edge
    corners = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1], device=masks.device)
    return box_convert(corners / torch.tensor([width, height, width, height], device=masks.device), "xyxy", "cxcywh")


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")


def try_weights(spec: RunSpec, path: Path) -> LoadReport:
    """What the file fills, worked out without storage for the model; CheckpointError where it does not fit."""
    tensors = read_checkpoint(path)
    token = next((tensor for name, tensor in tensors.items() if re.fullmatch(WEIGHTS.sign, name)), None)
    if token is None:
        raise CheckpointError(
            f"{path.name} holds no detector by the names of transformers (detr_decoder.presence_token.weight): "
            "give model.safetensors of facebook/sam3 (sam3.pt there has other names)"
        )
    with torch.device("meta"):
        model = Sam3(spec.backbone, spec.model)
    if token.shape != model.decoder.detr_decoder.presence_token.weight.shape:
        width = model.text_projection.out_features
        raise CheckpointError(
            f"{path.name} (SAM 3) has width {token.shape[-1]} and the model of profile {spec.profile} {width}: "
            "give a profile whose model has width 256 or more, --profile gpu or --profile paper"
        )
    return _of_decoder(match(model, tensors, path.name, WEIGHTS.fills, WEIGHTS)[1])


def _of_decoder(report: LoadReport) -> LoadReport:
    """The report on what such a file is for: the shared parts may have weights of their own."""
    return replace(report, random=("text_projection", "projections"))
