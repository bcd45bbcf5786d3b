"""SEEM (text): several queries, text in the self-attention, cross-attention masked at threshold 0.5.

The decoder skeleton is the one BoltzFormer was derived from, without BoltzFormer's own parts: no Boltzmann sampling,
no text-conditioned prior, no PiGMA. With one prompt per mask there is nothing to match queries against, so the mask
is the mean of the queries' masks, supervised like every other decoder's.
"""

from __future__ import annotations

from models.config import ModelConfig
from models.segmenter import BoltzFormer


def build_seem(backbone: str, config: ModelConfig) -> BoltzFormer:
    """The shared skeleton with masked attention; logits (P, H / 4, W / 4)."""
    own_parts_off = {"attention": "threshold", "text_prior": False, "pigma": False}
    return BoltzFormer(backbone, config.model_copy(update=own_parts_off))
