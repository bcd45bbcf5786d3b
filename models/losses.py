"""The loss of section 3.3 and appendix A.4: Dice plus binary cross-entropy, weight 1 : 1."""

from __future__ import annotations

from functools import cache
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


@cache
def _dice_loss(reduction: str) -> nn.Module:
    from monai.losses import DiceLoss  # seconds to import, so not before the first loss

    # squared denominators and one Dice per mask, as the authors'
    return DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=1e-5, smooth_dr=1e-5, reduction=reduction)


def segmentation_loss(logits: Tensor, target: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Dice + BCE, both means over prompts and pixels, in fp32; with reduction "none" one loss per prompt, (P,).

    logits: (P, h, w), resized to the target's size (bicubic, antialiased); target: (P, H, W) of 0 and 1.
    """
    logits = logits.float()[:, None]
    target = target.float()[:, None]
    if logits.shape[-2:] != target.shape[-2:]:
        logits = F.interpolate(logits, size=target.shape[-2:], mode="bicubic", antialias=True)
    dice = _dice_loss(reduction)(logits, target)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction=reduction)
    if reduction == "none":
        return dice.flatten() + cross_entropy.mean((1, 2, 3))
    return dice + cross_entropy
