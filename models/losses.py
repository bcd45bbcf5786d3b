"""The loss of section 3.3 and appendix A.4: Dice plus binary cross-entropy, weight 1 : 1."""

from __future__ import annotations

from functools import cache

from torch import Tensor, nn
from torch.nn import functional as F


@cache
def _dice_loss() -> nn.Module:
    from monai.losses import DiceLoss  # seconds to import, so not before the first loss

    # squared denominators and one Dice per mask, as the authors'
    return DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=1e-5, smooth_dr=1e-5)


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice + BCE, both means over prompts and pixels, in fp32.

    logits: (P, h, w), resized to the target's size (bicubic, antialiased); target: (P, H, W) of 0 and 1.
    """
    logits = logits.float()[:, None]
    target = target.float()[:, None]
    if logits.shape[-2:] != target.shape[-2:]:
        logits = F.interpolate(logits, size=target.shape[-2:], mode="bicubic", antialias=True)
    return _dice_loss()(logits, target) + F.binary_cross_entropy_with_logits(logits, target)
