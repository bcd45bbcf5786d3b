"""Attention that reads only the tokens it was given: every query aggregates its own set of rows.

The key and value projections are absorbed by the caller (`models.attention`), so a kept token costs 4 h d operations
and a token that was not kept costs none: it is neither projected nor read.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class TokenSets:
    """The kept tokens of R queries, one set after the other.

    rows: (T,) int64, which of the B * N rows of the flattened features; bounds: R + 1 offsets into it, a query's
    tokens are rows[bounds[r]:bounds[r + 1]]; query: (T,) int64, the query of each entry; padding: (T,) bool, True
    where an entry only fills up its set, or None.
    """

    rows: Tensor
    bounds: list[int]
    query: Tensor
    padding: Tensor | None = None


def token_sets(keep: Tensor, image_index: Tensor, counts: Tensor, multiple: int = 1) -> TokenSets:
    """keep: (P, m, N) bool, no row empty; counts: (P, m), its sums; image_index: (P,) -> the sets of R = P * m queries.

    Sets are filled up to a `multiple` of tokens, so that few different sizes reach a library that prepares a kernel
    for each.
    """
    queries, tokens = keep.shape[1:]
    query, token = keep.flatten(0, 1).nonzero(as_tuple=True)
    rows = token + image_index[query // queries] * tokens
    counts = counts.flatten()
    if multiple == 1:
        return TokenSets(rows, [0, *counts.cumsum(0).tolist()], query)
    padded = (counts + multiple - 1) // multiple * multiple
    bounds = padded.cumsum(0)
    place = torch.arange(len(rows), device=rows.device) + (bounds - padded - counts.cumsum(0) + counts)[query]
    padding = torch.ones(int(bounds[-1]), dtype=torch.bool, device=rows.device).index_fill_(0, place, False)
    filled = torch.zeros(len(padding), dtype=torch.int64, device=rows.device).index_copy_(0, place, rows)
    owner = torch.repeat_interleave(torch.arange(len(counts), device=rows.device), padded)
    return TokenSets(filled, [0, *bounds.tolist()], owner, padding)


def gathered_attention(
    query: Tensor, row_bias: Tensor, column_bias: Tensor, features: Tensor, grid: tuple[int, int], sets: TokenSets
) -> Tensor:
    """softmax(query . x_t + row_bias[y_t] + column_bias[x_t]) over each query's own tokens t, applied to x_t.

    query: (R, h, d) absorbed queries; row_bias: (R, h, H); column_bias: (R, h, W); features: (B, H * W, d) ->
    (R, h, d). Gradients flow to the first four. The weights of the sets are kept for them; gathered rows are not.
    """
    position = sets.rows % (grid[0] * grid[1])
    dtype = features.dtype
    bias = _pick(row_bias.to(dtype), sets.query, position // grid[1])
    bias = bias + _pick(column_bias.to(dtype), sets.query, position % grid[1])
    if sets.padding is not None:
        bias = bias.masked_fill(sets.padding, -math.inf)
    return _GatheredAttention.apply(query.to(dtype), bias, features.flatten(0, 1), sets.rows, sets.bounds)


def _pick(table: Tensor, query: Tensor, place: Tensor) -> Tensor:
    """(R, h, n) at (query, place), both (T,) -> (h, T)."""
    return table.transpose(0, 1).flatten(1).index_select(1, query * table.shape[2] + place)


class _GatheredAttention(torch.autograd.Function):
    """A loop of four calls per query, each over enough rows to be worth a call; one buffer serves all queries."""

    @staticmethod
    def forward(ctx, query: Tensor, bias: Tensor, features: Tensor, rows: Tensor, bounds: list[int]) -> Tensor:
        out, weights = torch.empty_like(query), torch.empty_like(bias)
        buffer = _buffer(features, bounds)
        for r, (start, end) in enumerate(pairwise(bounds)):
            x = torch.index_select(features, 0, rows[start:end], out=buffer[: end - start])
            scores = torch.addmm(bias[:, start:end], query[r], x.T, out=weights[:, start:end])
            scores.copy_(torch._softmax(scores, -1, False))
            torch.mm(scores, x, out=out[r])
        ctx.save_for_backward(query, weights, features, rows)
        ctx.bounds = bounds
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, weights, features, rows = ctx.saved_tensors
        bounds, grad = ctx.bounds, grad.contiguous()
        grad_query, grad_scores = torch.empty_like(query), torch.empty_like(weights)
        # in fp32: a token may be kept by many queries
        grad_features = torch.zeros_like(features, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        buffer = _buffer(features, bounds)
        for r, (start, end) in enumerate(pairwise(bounds)):
            x = torch.index_select(features, 0, rows[start:end], out=buffer[: end - start])
            w = weights[:, start:end]
            scores = torch._softmax_backward_data(torch.mm(grad[r], x.T), w, -1, w.dtype)
            torch.mm(scores, x, out=grad_query[r])
            grad_scores[:, start:end] = scores
            if grad_features is not None:
                # x enters twice: as a key through the scores, as a value through the weights
                both = torch.cat((scores, w)).T @ torch.cat((query[r], grad[r]))
                grad_features.index_add_(0, rows[start:end], both.float())
        if grad_features is not None:
            grad_features = grad_features.to(features.dtype)
        return grad_query, grad_scores, grad_features, None, None


class _Kept(threading.local):
    """One buffer per device and dtype, of each thread."""

    def __init__(self):
        self.buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}


_KEPT = _Kept()


def _buffer(features: Tensor, bounds: list[int]) -> Tensor:
    """Room for the largest set, kept from call to call: to be handed fresh memory takes longer than to fill it."""
    rows, width = max(end - start for start, end in pairwise(bounds)), features.shape[1]
    kept = _KEPT.buffers.get((features.device, features.dtype))
    if kept is None or len(kept) < rows * width:
        with torch.inference_mode(False):  # one that a prediction made also serves training
            kept = features.new_empty(rows * width)
        _KEPT.buffers[features.device, features.dtype] = kept
    return kept[: rows * width].view(rows, width)
