"""Text as the sparse prompts of SAM and SAM 2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.segmenter import build_text_encoder

TOKENS = 16  # per prompt, where all of them are given


class TextPrompt(nn.Module):
    """Prompts to sparse prompt embeddings of a fixed number of tokens: all tokens, or the pooled one alone.

    The two-way transformer cannot mask padding, so short prompts repeat their end-of-text token up to TOKENS and
    long ones are cut before it: what a prompt gives does not depend on the rest of the batch. The pooled token is
    CLIP's and UniCL's, that of the end of the text.
    """

    def __init__(self, config: ModelConfig, width: int, pooled: bool = False):
        super().__init__()
        self.tokens = 1 if pooled else TOKENS
        self.encoder = build_text_encoder(config)
        self.projection = nn.Linear(config.width, width)

    def forward(self, prompts: list[str]) -> Tensor:
        """P strings -> (P, TOKENS or 1, width)."""
        tokens, padding = self.encoder(prompts)
        last = (~padding).sum(dim=1) - 1
        position = torch.arange(self.tokens, device=tokens.device).expand(len(prompts), -1)
        # the last place is always the end-of-text token
        position = torch.where(position == self.tokens - 1, last[:, None], position.minimum(last[:, None]))
        tokens = tokens.gather(1, position[..., None].expand(-1, -1, tokens.shape[-1]))
        return self.projection(tokens)
