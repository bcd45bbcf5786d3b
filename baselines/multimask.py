"""Several masks per prompt and their predicted IoU, as SAM and SAM 2 train and use them ("Resolving ambiguity")."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.losses import segmentation_loss


def best_mask(masks: Tensor, quality: Tensor) -> Tensor:
    """Of masks (P, M, h, w) those of the highest predicted IoU (P, M): (P, h, w)."""
    return masks[torch.arange(len(masks), device=masks.device), quality.argmax(1)]


def multimask_loss(
    masks: Tensor, quality: Tensor, target: Tensor, distance: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The shared loss of each prompt's best mask + `distance` of predicted from true IoU, weights 1 : 1; a scalar.

    masks: logits (P, M, h, w); quality: predicted IoU (P, M); target: (P, H, W) of 0 and 1. Only the mask of the lowest
    loss is trained. The IoU of every mask is (`supervise_all_iou` in SAM 2.1's training): one that was not could
    be chosen in inference by chance.
    """
    with torch.no_grad():
        full = F.interpolate(masks.float(), size=target.shape[-2:], mode="bicubic", antialias=True)
        count = masks.shape[1]
        losses = segmentation_loss(full.flatten(0, 1), target.repeat_interleave(count, 0), reduction="none")
        predicted, truth = full > 0, target[:, None] > 0.5
        intersection, union = (predicted & truth).sum((2, 3)), (predicted | truth).sum((2, 3))
        iou = intersection / union.clamp(min=1)
    best = best_mask(masks, -losses.unflatten(0, (-1, count)))
    return segmentation_loss(best, target) + distance(quality.float(), iou)


def freeze_unasked(mask_decoder: nn.Module, multimask: bool) -> None:
    """Stops training what a package's mask decoder has for the other kind of output, so that it is not counted.

    One mask: the heads of the other three and of the IoU. Several masks: the head of the single one.
    """
    heads = mask_decoder.output_hypernetworks_mlps
    unasked = [heads[0]] if multimask else [*heads[1:], mask_decoder.iou_prediction_head]
    for head in unasked:
        head.requires_grad_(False)
