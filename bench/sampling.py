"""Records what a decoder's queries attend to in each layer while it predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.data.dataset import load_image
from bench.data.geometry import image_to_square
from bench.interface import Method, Sample
from bench.predict import generator_for, predict_logits
from bench.train import TrainedSegmenter
from models.boltzmann import Draws, annealed_temperature
from models.config import ModelConfig
from models.segmenter import BoltzFormer
from reports.sampling import CASE_FIELDS, SAMPLING_FILE, SampledCase, SampledLayer, save_cases


def chooses_tokens(model: nn.Module) -> bool:
    """Whether the decoder attends to chosen tokens (BoltzFormer, SEEM) and not to all of them (SAM, SAM 2)."""
    return isinstance(model, BoltzFormer) and model.decoder.config.attention != "full"


def predict_sampled(
    model: BoltzFormer, square: np.ndarray, prompts: Sequence[str], precision: str, generator: Draws
) -> tuple[Tensor, list[list[SampledLayer]]]:
    """The same logits as `predict_logits`, and for each prompt its layers."""
    decoder = model.decoder
    shares: list[np.ndarray] = []  # (P, g, g) per layer

    def choose(layer: int, logits: Tensor) -> Tensor | None:
        keep = decoder.choose_tokens(layer, logits, generator)
        share = torch.ones_like(logits[:, 0]) if keep is None else keep.flatten(1, -2).float().mean(dim=1)
        grid = math.isqrt(share.shape[-1])
        shares.append(share.float().unflatten(-1, (grid, grid)).cpu().numpy())
        return keep

    logits = predict_logits(model, square, prompts, precision, generator, choose=choose)
    rules = [_rule(decoder.config, layer) for layer in range(len(shares))]
    layers = [
        [SampledLayer(share[place], rule) for share, rule in zip(shares, rules, strict=True)]
        for place in range(len(prompts))
    ]
    return logits, layers


def leave_sampling(
    method: Method, samples: Sequence[Sample], records: Sequence[dict], predictions: Sequence[dict], run_dir: Path
) -> None:
    """Writes the layers of a small, a medium and a large test object to run_dir/sampling.npz.

    Nothing is written for a method that does not choose tokens.

    `records` and `predictions` are the rows of the run's two tables, in one order. The prompts of an image are
    predicted together, as for the records: the tokens are those behind its masks.
    """
    if not isinstance(method, TrainedSegmenter) or method.model is None or not chooses_tokens(method.model):
        return
    by_id = {(sample.dataset, sample.image_id): sample for sample in samples}
    device = next(method.model.parameters()).device
    cases = []
    for place in small_medium_large(records):
        row = {name: predictions[place][name] for name in CASE_FIELDS}
        sample = by_id[row["dataset"], row["image_id"]]
        square = image_to_square(load_image(sample.image_file), method.recipe.image_size)
        prompts = [target.prompts[0] for target in sample.targets]
        generators = [generator_for(sample.image_id, prompt, method.spec.seed, device) for prompt in prompts]
        _, layers = predict_sampled(method.model, square, prompts, method.recipe.precision, generators)
        of_object = [target.object for target in sample.targets].index(row["object"])
        cases.append(SampledCase(**row, layers=layers[of_object]))
    save_cases(cases, run_dir / SAMPLING_FILE)


def small_medium_large(records: Sequence[dict]) -> list[int]:
    """The places of three records of true objects: of all, by area in the image, the middle of each third.

    By the truth alone, so that every method shows the same cases; equal areas are ordered by name.
    """

    def order(place: int) -> tuple:
        record = records[place]
        share = record["area_px"] / (record["height"] * record["width"])
        return share, record["dataset"], record["image_id"], record["object"]

    places = sorted((place for place, record in enumerate(records) if record["area_px"] > 0), key=order)
    return list(dict.fromkeys(places[len(places) * sixth // 6] for sixth in (1, 3, 5))) if places else []


def _rule(config: ModelConfig, layer: int) -> str:
    if config.attention == "threshold":
        return "threshold 0.5"
    return f"temperature {annealed_temperature(config.temperature, layer, config.layers, config.annealing):.2g}"
