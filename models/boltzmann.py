"""Boltzmann sampling of image tokens (section 3.2.2): pure functions, randomness given by the caller."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# what draws: one generator for all prompts, or one for each, whose draws then do not depend on the others
Draws = torch.Generator | Sequence[torch.Generator] | None


class SharedGenerator(torch.Generator):
    """One generator for a batch that is worked on in parts, here or in several processes.

    Each part begins from the same state and draws for all `total` prompts of the batch (None: they are all here), of
    which its own begin at `first`: the noise of a prompt does not depend on how the batch is split.
    """

    first: int = 0
    total: int | None = None


def uniform(shape: torch.Size, device: torch.device, generator: Draws) -> Tensor:
    """Noise in [0, 1) of `shape` (P, ...), of P prompts; drawn prompt by prompt but for a plain generator."""
    if generator is None or type(generator) is torch.Generator:
        return torch.rand(shape, device=device, generator=generator)
    if not isinstance(generator, SharedGenerator):
        return torch.stack([torch.rand(shape[1:], device=device, generator=own) for own in generator])
    noise, others = torch.empty(shape, device=device), torch.empty(shape[1:], device=device)
    for place in range(-generator.first, (generator.total or shape[0]) - generator.first):
        (noise[place] if 0 <= place < len(noise) else others).uniform_(generator=generator)
    return noise


SCHEDULES: dict[str, Callable[[float], float]] = {
    # from 1 to 0 while x, the share of the layers that are done, goes from 0 to 1
    "linear": lambda x: 1 - x,
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
}


def annealed_temperature(base: float, layer: int, layers: int = 1, annealing: str = "inverse") -> float:
    """tau_l of layer l, counted from 0, of L `layers`: the paper's tau_0 / (1 + l) where `annealing` is "inverse".

    "linear" and "cosine" go by other ways between the same ends, tau_0 and tau_0 / L; "constant" stays at tau_0.
    """
    if annealing == "inverse":
        return base / (1 + layer)
    if annealing == "constant" or layers == 1:
        return base
    coldest = base / layers
    return coldest + (base - coldest) * SCHEDULES[annealing](layer / (layers - 1))


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
