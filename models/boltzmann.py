"""Boltzmann sampling of image tokens (section 3.2.2): pure functions, randomness given by the caller."""

from __future__ import annotations

import torch
from torch import Tensor


def annealed_temperature(base: float, layer: int) -> float:
    """tau_l = tau_0 / (1 + l)."""
    return base / (1 + layer)


def boltzmann_distribution(logits: Tensor, temperature: float) -> Tensor:
    """Eq. 5 on a grid: softmax over tokens of U / tau with U = sigmoid(logits).

    logits: (..., N) of mu . S on the layer's grid. Returns (..., N) in fp32, summing to 1.
    """
    return torch.softmax(torch.sigmoid(logits.float()) / temperature, dim=-1)


@torch.no_grad()
def miss_probability(distribution: Tensor, trials: int) -> Tensor:
    """(1 - p)^N: the chance that a token is in none of N independent draws (footnote 1), without a gradient."""
    # in place: with many queries the passes over memory are what sampling costs
    return distribution.neg().clamp_(min=-1 + 1e-7).log1p_().mul_(trials).exp_()


def sample_tokens(logits: Tensor, temperature: float, ratio: float, noise: Tensor) -> Tensor:
    """The attention set A of each query: (..., N) bool, True where the token is kept.

    noise: uniform in [0, 1), broadcastable to `logits`. Each token is kept independently (the Bernoulli form of
    N = floor(ratio * tokens) draws). A row that keeps nothing attends to everything. No gradient flows through.
    """
    with torch.no_grad():
        trials = int(ratio * logits.shape[-1])
        keep = noise >= miss_probability(boltzmann_distribution(logits, temperature), trials)
        return keep.logical_or_(~keep.any(dim=-1, keepdim=True))


def threshold_tokens(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """Masked attention of Mask2Former and SEEM: tokens with sigmoid(logits) >= threshold, or all if there is none."""
    with torch.no_grad():
        keep = torch.sigmoid(logits.float()) >= threshold
        return keep | ~keep.any(dim=-1, keepdim=True)
