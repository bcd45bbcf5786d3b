"""Sizes of the models, torch-free: what a profile chooses and a run's spec.json keeps."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class ModelConfig(BaseModel):
    """Everything that is shared by the decoders of one comparison, and the sizes of BoltzFormer's own parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = 512  # d: decoder, pixel features, text projection
    heads: int = 8
    feedforward: int = 2048
    layers: int = 9  # L; layer l attends to scale l mod 3
    queries: int = 101  # m
    pixel_layers: int = 6  # transformer encoder layers at stride 32
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    context_length: int = 77

    attention: Literal["boltzmann", "threshold", "full"] = "boltzmann"
    temperature: float = 1.0  # tau_0
    annealing: Literal["inverse", "linear", "cosine", "constant"] = "inverse"  # of the temperature, layer by layer
    sampling_ratio: float = 0.1  # N / N_v
    text_prior: bool = True  # Eq. 4
    pigma: bool = True  # Fig. 3; without it the mask is the query ensemble, Eq. 7
    pigma_channels: int = 10  # c
    compare_per_head: bool = False  # every head draws its own tokens, as in the authors' code: for comparison only


FULL = ModelConfig()
