"""Attention blocks of the decoder: cross-attention to sampled image tokens, self-attention over queries and text."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.gathered import gathered_attention, token_sets
from models.position import sine_position, sine_tables

Path = Literal["projected", "absorbed", "gathered"]


class CrossAttention(nn.Module):
    """Queries attend to the kept tokens of their image; residual and LayerNorm around it (step 2 of 3.2.2).

    One function, computed in the form that costs least for the call (`cheapest_path`); the forms agree to rounding:

    - projected: keys and values of all tokens, a boolean mask: for small grids and many queries.
    - absorbed: no token is projected. q . (W_K x) = (W_K^T q) . x and sum_t w_t W_V x_t = W_V sum_t w_t x_t, so the
      h absorbed queries of width d read the features as they are: for few queries.
    - gathered: absorbed, and each query reads its own tokens only: for large grids. Not chosen on a GPU, where the
      sizes of the sets would have to be waited for.
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
        # q . b_K is the same for all tokens and drops out of the softmax; the bias is there for published weights
        self.key.bias.requires_grad_(False)

    def forward(
        self,
        queries: Tensor,
        query_position: Tensor,
        features: Tensor,
        grid: tuple[int, int],
        level: Tensor,
        image_index: Tensor,
        keep: Tensor | None,
        path: Path | None = None,
    ) -> Tensor:
        """One update of the queries.

        queries: (P, m, d); query_position: (m, d); features: (B, H * W, d) of each image; grid: (H, W), whose sine
        position is added to the keys only; level: (d,), added to every feature (it drops out of the keys as their
        bias does); image_index: (P,); keep: (P, m, H * W) bool, True = attend, no row empty, or (P, h, m, H * W)
        where heads differ (always projected), or None for all. Returns (P, m, d).
        """
        query = self.query(queries + query_position).unflatten(-1, (self.heads, -1))
        value_bias = self.value.bias + self.value.weight @ level  # weights sum to 1: what is added once per token
        if keep is not None and keep.ndim == 4:
            path = "projected"
        counts = None
        if keep is not None and not features.is_cuda:  # reading sizes would wait for the GPU
            counts = torch.cat([sets.sum(-1) for sets in keep.split(1)])  # a sum makes integers of all of it first
        if path is None:
            path = cheapest_path(query, features, counts)
        if path == "projected":
            attended = self._projected(query, features, grid, value_bias, image_index, keep)
        else:
            absorbed = torch.einsum("pmhc,hcd->pmhd", query, self._per_head(self.key)) / math.sqrt(query.shape[-1])
            if path == "absorbed" or keep is None:
                mixed = self._absorbed(absorbed, features, grid, image_index, keep)
            else:
                mixed = self._gathered(absorbed, features, grid, image_index, keep, counts)
            attended = torch.einsum("pmhd,hcd->pmhc", mixed, self._per_head(self.value)).flatten(2) + value_bias
        return self.norm(queries + self.output(attended))

    def _per_head(self, projection: nn.Linear) -> Tensor:
        return projection.weight.unflatten(0, (self.heads, -1))  # (h, c, d)

    def _projected(self, query, features, grid, value_bias, image_index, keep) -> Tensor:
        """(P, m, h, c) -> (P, m, d) with the keys and values of all tokens."""
        place = sine_position(*grid, features.shape[-1], features.device)
        key = F.linear(features + place.to(features.dtype), self.key.weight).unflatten(-1, (self.heads, -1))
        value = F.linear(features, self.value.weight, value_bias).unflatten(-1, (self.heads, -1))
        key, value = key.transpose(1, 2), value.transpose(1, 2)  # (B, h, N, c)
        if keep is not None and keep.ndim == 3:
            keep = keep[:, None]  # one attention set per query, shared by its heads
        return _attention(query.transpose(1, 2), key, value, keep, image_index).transpose(1, 2).flatten(2)

    def _absorbed(self, absorbed, features, grid, image_index, keep) -> Tensor:
        """(P, m, h, d) -> (P, m, h, d): the features themselves are keys and values, of one wide head."""
        place = sine_position(*grid, features.shape[-1], features.device)
        key, value = (features + place.to(features.dtype))[:, None], features[:, None]
        query = absorbed.flatten(1, 2)[:, None].to(key.dtype)  # (P, 1, m * h, d)
        if keep is not None:
            keep = keep.repeat_interleave(self.heads, dim=1)[:, None]
        return _attention(query, key, value, keep, image_index, scale=1.0).reshape(absorbed.shape)

    def _gathered(self, absorbed, features, grid, image_index, keep, counts) -> Tensor:
        """(P, m, h, d) -> (P, m, h, d) from each query's own tokens; the sine position is a row plus a column term."""
        counts = keep.sum(-1) if counts is None else counts
        # bf16 products prepare a kernel per shape, which costs more than some more tokens
        sets = token_sets(keep, image_index, counts, multiple=1 if features.dtype == torch.float32 else 128)
        rows, columns = sine_tables(*grid, features.shape[-1], features.device)
        absorbed = absorbed.flatten(0, 1)
        half = rows.shape[1]
        row_bias, column_bias = absorbed[..., :half] @ rows.T, absorbed[..., half:] @ columns.T
        mixed = gathered_attention(absorbed, row_bias, column_bias, features, grid, sets)
        return mixed.unflatten(0, keep.shape[:2])


def _attention(query, key, value, keep, image_index, scale=None) -> Tensor:
    """query (P, h, m, c), key and value of images (B, h, N, c), keep (P, h or 1, m, N) or None -> (P, h, m, c)."""
    if len(key) > 1:
        return F.scaled_dot_product_attention(query, key[image_index], value[image_index], attn_mask=keep, scale=scale)
    # all prompts read the same tokens: more queries, not more copies of the tokens
    rows = query.transpose(0, 1).flatten(1, 2)[None]
    keep = None if keep is None else keep.transpose(0, 1).flatten(1, 2)[None]
    attended = F.scaled_dot_product_attention(rows, key, value, attn_mask=keep, scale=scale)
    return attended[0].unflatten(1, (len(query), -1)).transpose(0, 1)


def cheapest_path(query: Tensor, features: Tensor, counts: Tensor | None) -> Path:
    """The form with the lowest estimated cost for queries (P, m, h, c) on features (B, N, d).

    counts: (P, m) kept tokens, or None where all are kept, or where they are on a GPU and not to be waited for.
    """
    prompts, queries, heads, _ = query.shape
    images, tokens, width = features.shape
    absorbed, gathered, calls = FACTORS.get(query.dtype, FACTORS[torch.float32])
    rows = prompts * queries  # costs are in operations of a large matrix product
    costs: dict[Path, float] = {
        "projected": 4 * images * tokens * width**2 + 4 * rows * tokens * width,
        "absorbed": absorbed * 4 * rows * heads * tokens * width,
    }
    if counts is not None:
        costs["gathered"] = gathered * 4 * heads * int(counts.sum()) * width + calls * rows
    return min(costs, key=costs.get)


# `bench profile attention`: how many times its operations an absorbed and a gathered token cost, and what the calls of
# a gathered query cost; bf16 makes large products quicker and little else
FACTORS = {torch.float32: (1.0, 2.3, 3e6), torch.bfloat16: (2.0, 3.0, 1.5e7)}


def attend(attention: nn.MultiheadAttention, keys: Tensor, values: Tensor, padding: Tensor | None = None) -> Tensor:
    """What `attention` (batch first, no dropout) makes of queries that are the keys: (P, n, d), (P, n, d) -> (P, n, d).

    Called itself, it would put the batch second: torch multiplies such inputs one by one in bf16, each with its own
    copy of the weights. padding: (P, n) bool, True = not a key.
    """
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    query, key, value = (
        F.linear(x, weight, bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for x, weight, bias in zip((keys, keys, values), weights, biases, strict=True)
    )
    mask = None if padding is None else ~padding[:, None, None]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


class SelfAttention(nn.Module):
    """Self-attention over [queries, text]; residual and LayerNorm around it (Eq. 6)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        """x, position: (P, n, d); padding: (P, n) bool, True = not a token -> (P, n, d)."""
        return self.norm(x + attend(self.attention, x + position, x, padding))


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
