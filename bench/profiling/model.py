"""Whole full-size models on one image: one prompt, fifteen, training, and where the time goes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import cycle, product
from statistics import fmean

import torch
from torch import Tensor, nn

from baselines.sam import Sam
from baselines.sam2 import Sam2
from baselines.seem import build_seem
from bench.data.prompts import PROMPTS
from bench.environment import torch_device
from bench.profiling.decoder import PACKAGE
from bench.profiling.measure import (
    FAST,
    FORWARD,
    PLAIN,
    TRAINING,
    Case,
    Measurement,
    Outcome,
    Pace,
    Result,
    Way,
    measure,
    phase_call,
    rows_of,
    trained,
)
from models.backbones import normalise
from models.config import FULL
from models.cpu import quick
from models.plain import plain_decoder, plain_forward, plain_pigma, plain_pixel_decoder
from models.segmenter import BoltzFormer
from models.semantic import SemanticMap

BACKBONE = "hiera_s"
LARGEST = 1024  # px
MANY = 15  # prompts on one image
WORDS = [phrases[0] for phrases in PROMPTS.values()][:MANY]
INFERENCE_PACE = Pace(MANY, MANY, 0.0)  # the plain path has one prompt a turn: after MANY turns it has had all
PACE = Pace(2, 5, 3.0)  # seconds-long calls
DISAGREEMENT = 0.005  # of the pixels at most


def cases(quick: bool, threads: Sequence[int]) -> list[Case]:
    """With 10 queries only the largest size; there the other methods have one prompt only, for the time it takes."""
    found = []
    for count, size in product(threads, (256,) if quick else (256, 512, LARGEST)):
        title = f"model, {size} px, {{}}, {count} thread{'s' * (count != 1)}"
        unit = (size / LARGEST) ** 2 * (2 / min(count, 2)) ** 0.8  # of time, 1 at 1024 px on two threads
        inference, many = f"{{}} queries, 1 and {MANY} prompts", size < LARGEST

        def add(what: str, expected: float, run: Callable[..., Result], *more, title=title, size=size, count=count):
            found.append(Case(title.format(what), expected, partial(run, size, count, *more)))

        add(inference.format(FULL.queries), 10 + 300 * unit, _inference, FULL.queries, quick)
        if not quick:
            add("parts", 2 + 45 * unit, _parts)
            add(TRAINING, 2 + 130 * unit, _training)
            add("SAM, SAM 2, SEEM", 8 + (140 if many else 50) * unit, _others, many)
        if size == LARGEST:
            add(inference.format(10), 10 + 210 * unit, _inference, 10, True)
    return found


@lru_cache(maxsize=1)
def _models(queries: int) -> tuple[BoltzFormer, BoltzFormer]:
    """The fast one, and the same weights in the authors' memory layout."""
    torch.manual_seed(0)
    model = BoltzFormer(BACKBONE, FULL.model_copy(update={"queries": queries})).to(torch_device()).eval()
    return model, copy.deepcopy(model).to(memory_format=torch.contiguous_format)


def _image(size: int) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(torch_device()) * 255


def _draws() -> torch.Generator:
    return torch.Generator(torch_device()).manual_seed(0)


def _index(prompts: Sequence[str]) -> Tensor:
    return torch.zeros(len(prompts), dtype=torch.int64, device=torch_device())


def _where(size: int, threads: int) -> dict:
    return {"scope": "model", "image_size": size, "tokens": (size // 8) ** 2, "threads": threads}


def _inference(size: int, threads: int, queries: int, brief: bool) -> Result:
    """fp32 and bf16 by turns with plain fp32, which has the next prompt in each turn; `brief`: bf16 for one prompt."""
    model, plain_model = _models(queries)
    image = _image(size)
    words = {dtype: cycle(WORDS) for dtype in ("fp32", "bf16")}

    def plain(dtype: str) -> Tensor:
        word = [next(words[dtype])]
        return plain_forward(plain_model, image, word, _index(word), _draws())

    def fast(prompts: list[str]) -> Tensor:
        return model(image, prompts, _index(prompts), _draws())

    ways, dtypes = [], []
    for dtype, plain_every in (("fp32", 1), ("bf16", 8)):
        for path, forward, prompts, every in (
            (PLAIN, partial(plain, dtype), 1, plain_every),
            (FAST, partial(fast, WORDS[:1]), 1, 3),
            (FAST, partial(fast, WORDS), MANY, 8),
        ):
            if brief and dtype == "bf16" and (path, prompts) != (FAST, 1):
                continue
            call = phase_call(forward, FORWARD, dtype)
            ways.append(Way("boltzformer", path, call, queries, (FULL.sampling_ratio,), prompts, every))
            dtypes.append(dtype)

    result = Result()
    for way, dtype, found in zip(ways, dtypes, measure(ways, INFERENCE_PACE, threads), strict=True):
        where = _where(size, threads) | {"phase": FORWARD, "dtype": dtype}
        result.rows += rows_of(way, found, **where)
        if way.path == PLAIN and way.every == 1:
            separate = Measurement(MANY * found.gflop, [MANY * fmean(found.seconds)], found.peak_mib)
            result.rows += rows_of(replace(way, prompts=MANY), separate, **where)
    result.outcomes = _disagreements(model, plain_model, image, queries)
    return result


def _disagreements(model: BoltzFormer, plain_model: BoltzFormer, image: Tensor, queries: int) -> list[Outcome]:
    """How fast masks in fp32 and bf16 differ from plain fp32's, with the same draws and random weights."""
    word, index = WORDS[:1], _index(WORDS[:1])
    expected = phase_call(lambda: plain_forward(plain_model, image, word, index, _draws()), FORWARD, "fp32")() > 0
    outcomes = []
    for dtype in ("fp32", "bf16"):
        found = phase_call(lambda: model(image, word, index, _draws()), FORWARD, dtype)() > 0
        share = (found != expected).float().mean().item()
        size = image.shape[-1]
        work = f"mask in {dtype} against plain fp32, {size} px, {queries} queries: pixels that differ"
        outcomes.append(Outcome(size, work, f"< {DISAGREEMENT:.1%}", f"{share:.3%}", share < DISAGREEMENT))
    return outcomes


def _parts(size: int, threads: int) -> Result:
    """Plain and fast, part by part. What S costs is the pixel decoder's where it is plain, and of those that use it
    where it is folded."""
    model, plain_model = _models(FULL.queries)
    index = _index(WORDS[:1])
    with torch.inference_mode():
        stages = {PLAIN: _stages(plain_model, size, index, True), FAST: _stages(model, size, index, False)}
    result = Result()
    for part in stages[FAST]:
        sampling = (FULL.sampling_ratio,)
        ways = [
            Way("boltzformer", path, phase_call(stages[path][part], FORWARD, "fp32"), FULL.queries, sampling)
            for path in (PLAIN, FAST)
        ]
        where = _where(size, threads) | {"phase": f"{FORWARD}: {part}", "dtype": "fp32"}
        for way, found in zip(ways, measure(ways, PACE, threads), strict=True):
            result.rows += rows_of(way, found, **where)
    return result


def _stages(model: BoltzFormer, size: int, index: Tensor, plain: bool) -> dict[str, Callable[[], object]]:
    """Part -> its call, on what the part before it made."""
    encoder = model.image_encoder
    images = normalise(_image(size))
    maps = encoder.backbone(images)
    text, padding = model.text_encoder(WORDS[:1])
    if plain:
        visual, semantic = plain_pixel_decoder(encoder.pixel_decoder, maps)
        candidates = plain_decoder(model.decoder, visual, semantic, text, padding, _draws())
        return {
            "backbone": lambda: encoder.backbone(images),
            "pixel decoder": lambda: plain_pixel_decoder(encoder.pixel_decoder, maps),
            "text encoder": lambda: model.text_encoder(WORDS[:1]),
            "decoder": lambda: plain_decoder(model.decoder, visual, semantic, text, padding, _draws()),
            "PiGMA": lambda: plain_pigma(model.pigma, candidates, images),
        }
    maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    visual, made = encoder.pixel_decoder(maps)

    def fresh() -> SemanticMap:
        semantic = SemanticMap(made.features, made.convolution)
        semantic.plan(model.pigma.masks)
        return semantic

    def quickly(module: nn.Module, inputs: Tensor | list[Tensor]) -> object:
        with quick(images):
            return module(inputs)

    used = fresh()
    embeddings = model.decoder(visual, used, text, padding, index, _draws())
    return {
        "backbone": lambda: quickly(encoder.backbone, images),
        "pixel decoder": lambda: quickly(encoder.pixel_decoder, maps),
        "text encoder": lambda: model.text_encoder(WORDS[:1]),
        "decoder": lambda: model.decoder(visual, fresh(), text, padding, index, _draws()),
        "PiGMA": lambda: model.pigma(embeddings, used, images, index),
    }


def _training(size: int, threads: int) -> Result:
    """One prompt, fp32; gradients of all weights."""
    model, plain_model = _models(FULL.queries)
    image, word = _image(size), WORDS[:1]
    index = _index(word)
    forwards = {
        PLAIN: (plain_model, lambda: plain_forward(plain_model, image, word, index, _draws())),
        FAST: (model, lambda: model(image, word, index, _draws())),
    }
    sampling = (FULL.sampling_ratio,)
    ways = [
        Way("boltzformer", path, phase_call(forward, TRAINING, "fp32", trained(owner)), FULL.queries, sampling)
        for path, (owner, forward) in forwards.items()
    ]
    where = _where(size, threads) | {"phase": TRAINING, "dtype": "fp32"}
    measured = zip(ways, measure(ways, PACE, threads), strict=True)
    return Result([row for way, found in measured for row in rows_of(way, found, **where)])


def _others(size: int, threads: int, many: bool) -> Result:
    image = _image(size)
    result = Result()
    builds = {"sam": Sam, "sam2": Sam2, "seem": build_seem}
    models: dict[str, nn.Module] = {}
    for method, build in builds.items():
        torch.manual_seed(0)
        models[method] = build(BACKBONE, FULL).to(torch_device()).eval()
    for prompts in (WORDS[:1], WORDS) if many else (WORDS[:1],):
        ways = [
            Way(
                method,
                FAST if method == "seem" else PACKAGE,
                phase_call(partial(model, image, prompts, _index(prompts)), FORWARD, "fp32"),
                FULL.queries if method == "seem" else None,
                prompts=len(prompts),
            )
            for method, model in models.items()
        ]
        where = _where(size, threads) | {"phase": FORWARD, "dtype": "fp32"}
        for way, found in zip(ways, measure(ways, PACE, threads), strict=True):
            result.rows += rows_of(way, found, **where)
    return result
