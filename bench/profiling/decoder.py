"""The decoders of all methods, from image features, S and text tokens to mask logits, at the full size."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from baselines.sam import WIDTH as PROMPT_WIDTH
from baselines.sam import Sam
from baselines.sam2 import Sam2
from baselines.text_prompt import TOKENS as PROMPT_TOKENS
from bench.environment import torch_device
from bench.profiling.measure import (
    FAST,
    FORWARD,
    FULL_PACE,
    PLAIN,
    QUICK_PACE,
    TRAINING,
    Case,
    Pace,
    Result,
    Way,
    measure,
    phase_call,
    rows_of,
    trained,
)
from models.config import FULL, ModelConfig
from models.decoder import Decoder
from models.pigma import PiGMA
from models.plain import plain_decoder, plain_pigma
from models.segmenter import ImageFeatures
from models.semantic import SemanticMap

RATIOS = (0.05, 0.1, 0.2, 0.5)
TEXT_TOKENS = 10  # of a prompt of the paper's, about
CANDIDATES = "boltzformer-candidates"  # without PiGMA: the masks of all queries
PACKAGE = "package"  # the path of a decoder that is its package's own

# what makes logits from the queries: PiGMA, their masks' mean, or nothing
Head = PiGMA | Literal["mean", "candidates"]


def cases(quick: bool, threads: Sequence[int]) -> list[Case]:
    """`boltzformer` is decoder and PiGMA, `boltzformer-candidates` the decoder with the masks of all its queries.

    The other methods are measured beside BoltzFormer with as many queries as the full-size model has (quick: forward).
    """
    pace = QUICK_PACE if quick else FULL_PACE
    sizes, queries = ((512,), (10,)) if quick else ((256, 512, 1024), (10, 32, FULL.queries))
    kinds = [(FORWARD, "fp32"), (TRAINING, "fp32")] + ([] if quick else [(FORWARD, "bf16")])
    ratios = (FULL.sampling_ratio,) if quick else RATIOS
    found = []
    for count, size, many, (phase, dtype) in product(threads, sizes, queries, kinds):
        others = many == max(queries) and not (quick and phase == TRAINING)
        if dtype == "bf16" and many not in (10, FULL.queries):
            continue
        title = f"decoder, {size} px, {many} queries, {phase}, {dtype}, {count} thread{'s' * (count != 1)}"
        expected = _expected(size, many, phase, dtype, count, pace, others)
        found.append(Case(title, expected, partial(_run, size, many, phase, dtype, count, ratios, pace, others)))
    return found


def _expected(size: int, queries: int, phase: str, dtype: str, threads: int, pace: Pace, others: bool) -> float:
    turn = (size / 1024) ** 2 * (3.0 + 0.06 * queries + (4 if others else 0)) * (2 if phase == TRAINING else 1)
    turn *= (0.6 if dtype == "bf16" else 1) * (2 / min(threads, 2)) ** 0.8
    return 2 + 2 * turn + max(pace.rounds * turn, min(pace.seconds, pace.most * turn))


@dataclass(frozen=True)
class Inputs:
    """What a decoder reads of one image and one prompt."""

    images: Tensor
    visual: list[Tensor]
    semantic: Tensor
    text: Tensor
    padding: Tensor
    sparse: Tensor  # the prompt as SAM's decoders take it
    index: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        """What a gradient flows to."""
        return [*self.visual, self.semantic, self.text, self.sparse]


def _inputs(size: int, phase: str, dtype: str, layout: torch.memory_format) -> Inputs:
    """Random ones, the same numbers for every layout; under autocast the image encoder's maps are bf16."""
    device = torch.device(torch_device())
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int, precision: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(*shape, generator=generator).to(device, precision)
        values = values.contiguous(memory_format=layout) if len(shape) == 4 else values
        return values.requires_grad_(phase == TRAINING)

    maps = partial(leaf, precision=torch.bfloat16 if dtype == "bf16" else torch.float32)
    return Inputs(
        images=torch.randn(1, 3, size, size, generator=generator).to(device),
        visual=[maps(1, FULL.width, size // stride, size // stride) for stride in (32, 16, 8)],
        semantic=maps(1, FULL.width, size // 4, size // 4),
        text=leaf(1, TEXT_TOKENS, FULL.width),
        padding=torch.zeros(1, TEXT_TOKENS, dtype=torch.bool, device=device),
        sparse=leaf(1, PROMPT_TOKENS, PROMPT_WIDTH),
        index=torch.zeros(1, dtype=torch.int64, device=device),
    )


def _run(
    size: int, queries: int, phase: str, dtype: str, threads: int, ratios: Sequence[float], pace: Pace, others: bool
) -> Result:
    inputs = {
        PLAIN: _inputs(size, phase, dtype, torch.contiguous_format),  # the authors' layout
        FAST: _inputs(size, phase, dtype, torch.channels_last),  # our image encoder's
    }
    config = FULL.model_copy(update={"queries": queries})
    ways = _boltzformer(config, inputs, phase, dtype, ratios)
    if others:
        ways += [*_seem_and_full(config, inputs, phase, dtype), *_sam_and_sam2(config, inputs[FAST], phase, dtype)]
    where = {"scope": "decoder", "image_size": size, "tokens": (size // 8) ** 2}
    where |= {"phase": phase, "dtype": dtype, "threads": threads}
    measured = zip(ways, measure(ways, pace, threads), strict=True)
    return Result([row for way, found in measured for row in rows_of(way, found, **where)])


def _boltzformer(
    config: ModelConfig, inputs: dict[str, Inputs], phase: str, dtype: str, ratios: Sequence[float]
) -> list[Way]:
    decoder, pigma = _build(config)
    ways = []
    for method, head, sampled in (
        ("boltzformer", pigma, tuple(ratios)),
        (CANDIDATES, "candidates", (config.sampling_ratio,)),
    ):
        call = _call(_plain, decoder, head, inputs[PLAIN], phase, dtype)
        ways.append(Way(method, PLAIN, call, config.queries, sampled))  # all the work whatever is sampled
        for ratio in sampled:
            call = _call(_fast, _with_ratio(decoder, ratio), head, inputs[FAST], phase, dtype)
            ways.append(Way(method, FAST, call, config.queries, (ratio,)))
    return ways


def _seem_and_full(config: ModelConfig, inputs: dict[str, Inputs], phase: str, dtype: str) -> list[Way]:
    ways = []
    seem = {"attention": "threshold", "text_prior": False, "pigma": False}
    for method, update in (("seem", seem), ("full", {"attention": "full"})):
        decoder, head = _build(config.model_copy(update=update))
        for path, forward in ((PLAIN, _plain), (FAST, _fast)):
            ways.append(Way(method, path, _call(forward, decoder, head, inputs[path], phase, dtype), config.queries))
    return ways


def _sam_and_sam2(config: ModelConfig, x: Inputs, phase: str, dtype: str) -> list[Way]:
    small = config.model_copy(update={"pixel_layers": 1, "text_layers": 1})  # encoders that are not run
    ways = []
    for method, build in (("sam", Sam), ("sam2", Sam2)):
        model = build("hiera_xt", small).to(x.index.device).eval()
        parameters = [p for n, p in model.named_parameters() if not n.startswith(("image_encoder", "text_prompt"))]

        def forward(model: Sam | Sam2 = model) -> Tensor:
            return model.decode(ImageFeatures(x.images, x.visual, SemanticMap(x.semantic)), x.sparse, x.index)

        ways.append(Way(method, PACKAGE, phase_call(forward, phase, dtype, [*x.leaves, *parameters])))
    return ways


def _build(config: ModelConfig) -> tuple[Decoder, Head]:
    torch.manual_seed(0)
    decoder = Decoder(config).to(torch_device()).eval()
    return decoder, PiGMA(config.queries, config.pigma_channels).to(torch_device()) if config.pigma else "mean"


def _with_ratio(decoder: Decoder, ratio: float) -> Decoder:
    """The same decoder, weights shared, at another sampling ratio."""
    other = copy.copy(decoder)
    other.config = decoder.config.model_copy(update={"sampling_ratio": ratio})
    return other


def _call(forward, decoder: Decoder, head: Head, x: Inputs, phase: str, dtype: str):
    parameters = trained(decoder, head) if isinstance(head, PiGMA) else trained(decoder)
    return phase_call(partial(forward, decoder, head, x), phase, dtype, [*x.leaves, *parameters])


def _draws(x: Inputs) -> torch.Generator:
    """The same for every path."""
    return torch.Generator(x.index.device).manual_seed(0)


def _plain(decoder: Decoder, head: Head, x: Inputs) -> Tensor:
    candidates = plain_decoder(decoder, x.visual, x.semantic, x.text, x.padding, _draws(x))
    if head == "candidates":
        return candidates
    return candidates.mean(1) if head == "mean" else plain_pigma(head, candidates, x.images)


def _fast(decoder: Decoder, head: Head, x: Inputs) -> Tensor:
    semantic = SemanticMap(x.semantic)
    embeddings = decoder(x.visual, semantic, x.text, x.padding, x.index, _draws(x))
    if head == "candidates":
        return semantic.logits(embeddings, x.index)
    if head == "mean":
        return semantic.logits(embeddings.mean(1, keepdim=True), x.index)
    return head(embeddings, semantic, x.images, x.index)
