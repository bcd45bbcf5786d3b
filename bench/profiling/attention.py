"""One cross-attention layer of the full-size decoder: the plain path, every exact form, and what the rule chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import get_args

import torch
from torch import Tensor

from bench.environment import torch_device
from bench.profiling.measure import (
    FORWARD,
    FULL_PACE,
    PLAIN,
    QUICK_PACE,
    TRAINING,
    Case,
    Pace,
    Result,
    Row,
    Way,
    measure,
    phase_call,
    rows_of,
    trained,
)
from models.attention import CrossAttention, Path, cheapest_path
from models.boltzmann import annealed_temperature, sample_tokens
from models.config import FULL
from models.plain import plain_cross_attention

AUTO = "auto"  # the form that the cost rule chooses, which is the one the decoder uses
FORMS: tuple[Path, ...] = get_args(Path)
QUICK_SIDE = 128
RATIOS = (0.05, 0.1, 0.2, 0.5)
CONCENTRATED = 0.01  # of the tokens are kept: one place stands out, in the last layer, where the distribution is cold
TOLERANCE = 1.3  # the choice is told of where it takes longer than this times the best form


def cases(quick: bool, threads: Sequence[int]) -> list[Case]:
    """Several numbers of threads for 10 queries in fp32, else the largest, which is quicker.

    At 256 x 256 tokens the plain path is run forward only: its training step would take most of the time.
    """
    pace = QUICK_PACE if quick else FULL_PACE
    if quick:
        shapes = [(QUICK_SIDE, 10, phase, "fp32", count) for phase, count in product((FORWARD, TRAINING), threads)]
    else:
        shapes = list(product((32, 64, 128), (10, 32, 101), (FORWARD, TRAINING), ("fp32", "bf16"), (max(threads),)))
        shapes += product((32, 64, 128), (10,), (FORWARD, TRAINING), ("fp32",), sorted(threads)[:-1])
        shapes += [(256, 10, phase, "fp32", max(threads)) for phase in (FORWARD, TRAINING)]
    ratios = (0.1,) if quick else RATIOS
    return [
        Case(
            f"attention, {side} x {side} tokens, {queries} queries, {phase}, {dtype}, {_count(count)}",
            _expected(side, queries, phase, dtype, count, pace),
            partial(_run, side, queries, phase, dtype, count, ratios, pace),
        )
        for side, queries, phase, dtype, count in shapes
    ]


def _count(threads: int) -> str:
    return f"{threads} thread{'s' * (threads != 1)}"


def _expected(side: int, queries: int, phase: str, dtype: str, threads: int, pace: Pace) -> float:
    turn = (side / 128) ** 2 * (0.95 + 0.025 * queries) * (2.5 if phase == TRAINING else 1)
    turn *= (0.6 if dtype == "bf16" else 1) / min(threads, 2) ** 0.8
    return 1 + 2 * turn + max(pace.rounds * turn, min(pace.seconds, pace.most * turn))


def _run(side: int, queries: int, phase: str, dtype: str, threads: int, ratios: Sequence[float], pace: Pace) -> Result:
    device = torch.device(torch_device())
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = CrossAttention(FULL.width, FULL.heads).to(device).eval()
    grid, tokens = (side, side), side * side

    def leaf(*shape: int, precision: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(*shape, generator=generator).to(device, precision)
        return values.requires_grad_(phase == TRAINING)

    content, position = leaf(1, queries, FULL.width), leaf(queries, FULL.width)
    features = leaf(1, tokens, FULL.width, precision=torch.bfloat16 if dtype == "bf16" else torch.float32)
    level = leaf(FULL.width)
    leaves = [content, position, features, level, *trained(layer)]
    index = torch.zeros(1, dtype=torch.int64, device=device)
    keeps = {ratio: sampled(grid, queries, ratio, generator).to(device) for ratio in (CONCENTRATED, *ratios)}
    everything = tuple(keeps)

    def way(path: str, keep: Tensor | None, samplings: tuple[float | None, ...], method: str = "boltzformer") -> Way:
        def forward() -> Tensor:
            if path == PLAIN:
                return plain_cross_attention(layer, content, position, features, grid, level, keep)[0]
            form = None if path == AUTO else path
            return layer(content, position, features, grid, level, index, keep, form)

        return Way(method, path, phase_call(forward, phase, dtype, leaves), queries, samplings)

    # these three read every token whatever is kept: measured once, a row for each sampling
    ways = [way(path, keeps[ratios[0]], everything) for path in (PLAIN, "projected", "absorbed")]
    ways += [way("gathered", keep, (ratio,)) for ratio, keep in keeps.items()]
    ways += [way(path, None, (None,), "full") for path in (PLAIN, AUTO)]
    if side > 128 and phase == TRAINING:
        ways = [w for w in ways if w.path not in (PLAIN, "projected")]
    where = {"scope": "attention", "image_size": None, "tokens": tokens}
    where |= {"phase": phase, "dtype": dtype, "threads": threads}
    measured = zip(ways, measure(ways, pace, threads), strict=True)
    result = Result([row for one, found in measured for row in rows_of(one, found, **where)])

    query = torch.empty(1, queries, FULL.heads, FULL.width // FULL.heads, device=device, dtype=features.dtype)
    for ratio, keep in keeps.items():
        chosen = cheapest_path(query, features, None if features.is_cuda else keep.sum(-1))
        _add_choice(result, [row for row in result.rows if row.sampling == ratio], chosen)
    return result


def _add_choice(result: Result, rows: list[Row], chosen: Path) -> None:
    """The row of the form that the rule chose, once more as the choice, and a note where it is a bad one."""
    forms = {row.path: row for row in rows if row.path in FORMS}
    if chosen not in forms:
        return
    choice, best = forms[chosen], min(forms.values(), key=lambda row: row.seconds)
    result.rows.append(Row(**vars(choice) | {"path": AUTO}))
    slower = choice.seconds / best.seconds
    if slower > TOLERANCE:
        result.notes.append(
            f"the rule takes {chosen}, {slower:.1f} x as long as {best.path}: {choice.tokens} tokens, "
            f"{choice.queries} queries, {choice.sampling:.0%}, {choice.phase}, {choice.dtype}, {_count(choice.threads)}"
        )


def sampled(grid: tuple[int, int], queries: int, ratio: float, generator: torch.Generator) -> Tensor:
    """What the sampler keeps: (1, queries, tokens) bool.

    At a ratio of RATIOS from random logits in the first layer, about 1 - exp(-ratio) of all tokens. At CONCENTRATED
    from logits of a disc of that area around one place per query, in the last layer at ratio 0.1.
    """
    height, width = grid
    noise = torch.rand(1, queries, height * width, generator=generator)
    if ratio != CONCENTRATED:
        logits = torch.randn(1, queries, height * width, generator=generator)
        return sample_tokens(logits, annealed_temperature(FULL.temperature, 0), ratio, noise)
    radius = math.sqrt(CONCENTRATED * height * width / math.pi)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.rand(queries, 2, generator=generator) * torch.tensor([height - 1, width - 1])
    distance = torch.hypot(y - places[:, :1, None], x - places[:, 1:, None])
    logits = torch.where(distance <= radius, 20.0, -20.0).flatten(1)[None]
    coldest = annealed_temperature(FULL.temperature, FULL.layers - 1)
    return sample_tokens(logits, coldest, FULL.sampling_ratio, noise)
