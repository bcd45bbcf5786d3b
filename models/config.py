"""Sizes of the models, torch-free: what a profile chooses and a run's spec.json keeps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# spec.json may come from somebody else: no model that could not be built
Size = Annotated[int, Field(ge=1, le=2**14)]
Layers = Annotated[int, Field(ge=1, le=1000)]


class ModelConfig(BaseModel):
    """Everything that is shared by the decoders of one comparison, and the sizes of BoltzFormer's own parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Size = 512  # d: decoder, pixel features, text projection
    heads: Size = 8
    feedforward: Size = 2048
    layers: Layers = 9  # L; layer l attends to scale l mod 3
    queries: Size = 101  # m
    pixel_layers: Layers = 6  # transformer encoder layers at stride 32
    text_width: Size = 512
    text_layers: Layers = 12
    text_heads: Size = 8
    context_length: Size = 77

    attention: Literal["boltzmann", "threshold", "full"] = "boltzmann"
    temperature: Annotated[float, Field(gt=0)] = 1.0  # tau_0
    annealing: Literal["inverse", "linear", "cosine", "constant"] = "inverse"  # of the temperature, layer by layer
    sampling_ratio: Annotated[float, Field(gt=0, le=1)] = 0.1  # N / N_v
    text_prior: bool = True  # Eq. 4
    pigma: bool = True  # Fig. 3; without it the mask is the query ensemble, Eq. 7
    pigma_channels: Size = 10  # c
    compare_per_head: bool = False  # every head draws its own tokens, as in the authors' code: for comparison only

    @model_validator(mode="after")
    def _divisible(self) -> ModelConfig:
        if self.width % 32 or self.width % self.heads:
            raise ValueError("width is to be a multiple of 32 (groups of a norm) and of heads")
        if self.text_width % self.text_heads:
            raise ValueError("text_width is to be a multiple of text_heads")
        return self


FULL = ModelConfig()
