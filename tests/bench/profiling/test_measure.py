"""Turns, medians, operations and memory of calls whose cost is known."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench.profiling.attention import sampled
from bench.profiling.measure import (
    FORWARD,
    TRAINING,
    Measurement,
    Pace,
    Way,
    by_turns,
    count_gflop,
    measure,
    peak_mib,
    phase_call,
    rows_of,
)
from models.attention import CrossAttention
from models.plain import plain_cross_attention

WIDTH, HEADS, GRID, QUERIES = 64, 4, (12, 10), 5
TOKENS = GRID[0] * GRID[1]
WHERE = {"scope": "attention", "image_size": None, "tokens": 16, "phase": FORWARD, "dtype": "fp32", "threads": 1}


class World:
    """A clock that only calls move on, and what was called."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def clock(self):
        return self.now

    def way(self, name, *seconds, every=1):
        left = list(seconds)

        def call():
            self.order.append(name)
            self.now += left.pop(0)

        return Way(name, "plain", call, every=every)


def test_ways_take_turns_and_keep_their_own_seconds():
    world = World()
    ways = [world.way("a", 1, 2, 3), world.way("b", 10, 20, 30)]
    assert by_turns(ways, Pace(3, 3, 0), world.clock) == [[1, 2, 3], [10, 20, 30]]
    assert world.order == ["a", "b", "a", "b", "a", "b"]


def test_a_rare_way_has_its_turn_in_every_nth_round():
    world = World()
    ways = [world.way("a", *[1] * 5), world.way("b", 7, 8, every=3)]
    assert by_turns(ways, Pace(5, 5, 0), world.clock) == [[1] * 5, [7, 8]]
    assert "".join(world.order) == "abaaaba"


@pytest.mark.parametrize(("pace", "turns"), [(Pace(2, 9, 0), 2), (Pace(2, 9, 10), 5), (Pace(2, 4, 10), 4)])
def test_rounds_go_on_until_the_time_is_over(pace, turns):
    world = World()
    (seconds,) = by_turns([world.way("a", *[2.0] * 9)], pace, world.clock)
    assert seconds == [2.0] * turns


def test_a_quick_call_is_made_again_in_its_turn():
    world = World()
    ways = [world.way("a", *[0.02] * 6), world.way("b", 1, 1)]
    assert by_turns(ways, Pace(2, 2, 0), world.clock) == [pytest.approx([0.02] * 6), pytest.approx([1, 1])]
    assert "".join(world.order) == "aaabaaab"


def test_a_row_has_the_median_and_there_is_one_for_each_sampling():
    way = Way("boltzformer", "plain", lambda: None, 10, (0.1, 0.5))
    rows = rows_of(way, Measurement(3.0, [5.0, 1.0, 9.0, 2.0, 2.5], None), **WHERE)
    assert [(row.sampling, row.seconds, row.gflop, row.queries) for row in rows] == [
        (0.1, 2.5, 3.0, 10),
        (0.5, 2.5, 3.0, 10),
    ]


def test_threads_are_set_for_the_calls_and_put_back():
    seen = []
    before = torch.get_num_threads()
    way = Way("a", "plain", lambda: time.sleep(0.01) or seen.append(torch.get_num_threads()))
    (found,) = measure([way], Pace(2, 2, 0), before + 1)
    assert len(seen) >= 4 and set(seen) == {before + 1}  # counted, weighed, and two turns
    assert torch.get_num_threads() == before
    assert found.gflop == 0 and len(found.seconds) == len(seen) - 2


def layer_and_inputs(ratio=0.2):
    torch.manual_seed(0)
    layer = CrossAttention(WIDTH, HEADS)
    generator = torch.Generator().manual_seed(1)
    keep = sampled(GRID, QUERIES, ratio, generator)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return layer, draw(1, QUERIES, WIDTH), draw(QUERIES, WIDTH), draw(1, TOKENS, WIDTH), draw(WIDTH), keep


def form_gflop(path, phase=FORWARD):
    layer, content, position, features, level, keep = layer_and_inputs()
    index = torch.zeros(1, dtype=torch.int64)
    forward = lambda: layer(content, position, features, GRID, level, index, keep, path)  # noqa: E731
    return 1e9 * count_gflop(phase_call(forward, phase, "fp32", list(layer.parameters()))), int(keep.sum())


def test_operations_of_the_plain_layer_are_those_of_the_formula():
    layer, content, position, features, level, keep = layer_and_inputs()
    forward = lambda: plain_cross_attention(layer, content, position, features, GRID, level, keep)[0]  # noqa: E731
    counted = 1e9 * count_gflop(phase_call(forward, FORWARD, "fp32"))
    d, m, n = WIDTH, QUERIES, TOKENS
    assert counted == pytest.approx(4 * n * d**2 + 4 * m * n * d + 4 * m * d**2, rel=1e-9)


@pytest.mark.parametrize("path", ["projected", "absorbed", "gathered"])
def test_operations_of_the_forms_are_those_of_the_formulas(path):
    counted, kept = form_gflop(path)
    d, m, n, h = WIDTH, QUERIES, TOKENS, HEADS
    position = 2 * m * h * (d // 2) * sum(GRID)  # of the rows and of the columns
    expected = {
        # fused attention is counted, too
        "projected": 4 * n * d**2 + 4 * m * n * d + 4 * m * d**2,
        "absorbed": 4 * m * h * n * d + 8 * m * d**2,
        "gathered": 4 * h * kept * d + 8 * m * d**2 + position,
    }
    assert counted == pytest.approx(expected[path], rel=1e-9)


def test_the_backward_pass_of_gathered_attention_is_counted():
    forward, kept = form_gflop("gathered")
    both, _ = form_gflop("gathered", TRAINING)
    # of each kept token: the weights' and the scores' gradients; the features had none to get
    assert both - forward >= 4 * HEADS * kept * WIDTH


def test_operations_are_those_of_torchs_own_counter():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 4, stride=2), nn.Flatten(2), nn.Linear(676, 5))
    net.append(nn.Linear(5, 2))
    image = torch.randn(2, 3, 14, 14)
    call = lambda: F.softmax(net(image), -1).sum().backward()  # noqa: E731
    with FlopCounterMode(display=False) as counter:
        call()
    assert count_gflop(call) == pytest.approx(counter.get_total_flops() / 1e9) != 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="resident memory is measured where there is no GPU")
def test_peak_is_what_a_call_takes_and_gives_back_each_time_it_is_asked():
    if peak_mib(lambda: None) is None:
        pytest.skip("this system keeps no peak of resident memory that can start anew (Linux does)")

    def call():
        parts = [torch.ones(2**18) for _ in range(48)]  # 1 MiB each, which the allocator would keep
        del parts[:24]
        return torch.ones(2**20)

    for _ in range(2):
        assert 46 <= peak_mib(call) <= 54
    assert peak_mib(lambda: None) < 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_on_a_gpu_is_the_allocated_memory():
    assert 39 <= peak_mib(lambda: torch.ones(10 * 2**20, device="cuda")) <= 45
