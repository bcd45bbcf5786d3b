import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.boltzmann import (
    SharedGenerator,
    annealed_temperature,
    boltzmann_distribution,
    miss_probability,
    sample_tokens,
    threshold_tokens,
    uniform,
)


def test_annealing_of_the_paper():
    assert [annealed_temperature(2.0, layer) for layer in range(4)] == [2.0, 1.0, 2 / 3, 0.5]


@pytest.mark.parametrize("annealing", ["inverse", "linear", "cosine"])
@pytest.mark.parametrize("layers", [1, 2, 9])
def test_all_schedules_fall_between_the_same_ends(annealing, layers):
    temperatures = [annealed_temperature(2.0, layer, layers, annealing) for layer in range(layers)]
    assert temperatures[0] == 2.0 and temperatures[-1] == pytest.approx(2.0 / layers)
    assert temperatures == sorted(temperatures, reverse=True)


def test_schedules_by_hand():
    at = lambda annealing: [annealed_temperature(1.0, layer, 5, annealing) for layer in range(5)]  # noqa: E731
    assert at("constant") == [1.0] * 5
    assert at("linear") == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert at("cosine")[2] == pytest.approx(0.6) and at("cosine")[1] > at("linear")[1]


@settings(deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=12), st.floats(0.1, 4))
def test_distribution_is_equation_5(logits, temperature):
    confidence = [1 / (1 + math.exp(-x)) for x in logits]
    weights = [math.exp(u / temperature) for u in confidence]
    expected = torch.tensor([w / sum(weights) for w in weights])
    torch.testing.assert_close(
        boltzmann_distribution(torch.tensor(logits), temperature), expected, rtol=1e-4, atol=1e-6
    )


def test_miss_probability_is_that_of_independent_draws():
    distribution = torch.tensor([0.5, 0.3, 0.2])
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(distribution.expand(200_000, 3), 4, replacement=True, generator=generator)
    missed = torch.stack([(draws != token).all(1).float().mean() for token in range(3)])
    torch.testing.assert_close(miss_probability(distribution, 4), missed, atol=5e-3, rtol=0)


def test_sampled_share_and_concentration():
    noise = torch.rand(50, 4, 1024, generator=torch.Generator().manual_seed(0))
    flat = sample_tokens(torch.zeros(50, 4, 1024), 1.0, 0.1, noise)
    assert abs(flat.float().mean().item() - (1 - math.exp(-0.1))) < 5e-3
    peaked = torch.full((50, 4, 1024), -9.0)
    peaked[..., :10] = 9.0
    hot, cold = (sample_tokens(peaked, t, 0.1, noise)[..., :10].float().mean().item() for t in (1.0, 0.1))
    assert hot < 0.35 < 0.95 < cold


def test_a_row_with_nothing_kept_attends_to_everything():
    logits = torch.zeros(1, 2, 16)
    keep = sample_tokens(logits, 1.0, 0.1, torch.zeros(1, 2, 16))
    assert keep.all()
    logits[0, 1, 3] = 1.0
    logits[0, 0] = -1.0
    keep = threshold_tokens(logits - 0.5)
    assert keep[0, 0].all()
    assert keep[0, 1].nonzero().flatten().tolist() == [3]


def test_no_gradient_flows_through_the_choice():
    logits = torch.randn(1, 2, 16, requires_grad=True)
    assert not sample_tokens(logits, 1.0, 0.5, torch.rand(1, 2, 16)).requires_grad
    assert not threshold_tokens(logits).requires_grad


def test_the_noise_of_a_prompt_does_not_depend_on_the_split():
    shape, device = torch.Size((5, 3, 7)), torch.device("cpu")
    plain = torch.Generator().manual_seed(4)
    whole = [torch.rand(shape, generator=plain) for _ in range(2)]
    for cuts in ((0, 5), (0, 2, 5), (0, 1, 2, 3, 4, 5)):
        for first, last in itertools.pairwise(cuts):
            part = SharedGenerator()
            part.manual_seed(4)
            part.first, part.total = first, 5
            for layer in whole:
                assert torch.equal(uniform(torch.Size((last - first, 3, 7)), device, part), layer[first:last])
            assert torch.equal(part.get_state(), plain.get_state()), "all parts leave the same state"
    alone = SharedGenerator()
    alone.manual_seed(4)
    assert torch.equal(uniform(shape, device, alone), whole[0])
    own = [torch.Generator().manual_seed(seed) for seed in range(5)]
    assert torch.equal(uniform(shape, device, own)[2], torch.rand(3, 7, generator=torch.Generator().manual_seed(2)))
