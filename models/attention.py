"""Attention blocks of the decoder: cross-attention to sampled image tokens, self-attention over queries and text."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)  # (..., n, d) -> (..., heads, n, d / heads)


class CrossAttention(nn.Module):
    """Queries attend to the kept tokens of their image; residual and LayerNorm around it (step 2 of 3.2.2).

    The plain path: keys and values of all tokens, a boolean mask. Projected once per image, not once per prompt.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        for projection in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Tensor,
        query_position: Tensor,
        features: Tensor,
        feature_position: Tensor,
        image_index: Tensor,
        keep: Tensor | None,
    ) -> Tensor:
        """One update of the queries.

        queries: (P, m, d); query_position: (m, d); features: (B, N, d) of each image; feature_position: (N, d),
        added to the keys only; image_index: (P,); keep: (P, m, N) bool, True = attend, or None for all.
        Returns (P, m, d).
        """
        q = _split_heads(self.query(queries + query_position), self.heads)
        k = _split_heads(self.key(features + feature_position), self.heads)[image_index]
        v = _split_heads(self.value(features), self.heads)[image_index]
        mask = None if keep is None else keep[:, None]  # one attention set per query, shared by its heads
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.norm(queries + self.output(attended.transpose(1, 2).flatten(2)))


class SelfAttention(nn.Module):
    """Self-attention over [queries, text]; residual and LayerNorm around it (Eq. 6)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        """x, position: (P, n, d); padding: (P, n) bool, True = not a token -> (P, n, d)."""
        q = x + position
        attended, _ = self.attention(q, q, x, key_padding_mask=padding, need_weights=False)
        return self.norm(x + attended)


class FeedForward(nn.Module):
    """Two linear layers with ReLU; residual and LayerNorm around them."""

    def __init__(self, width: int, feedforward: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


class MLP(nn.Sequential):
    """Linear layers with ReLU between them: the map from query to mask embedding (Eq. 3)."""

    def __init__(self, *widths: int):
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers[:-1])
