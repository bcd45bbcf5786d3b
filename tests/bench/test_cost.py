"""Costs of a model whose operations can be counted by hand, and of memory that was surely taken."""

import pytest
import torch
from torch import nn

from bench.cost import MANY, inference_cost, peak_memory_mib, restart_peak
from bench.fairness import COSTS


class Convolution(nn.Module):
    """3 x 3 over the image, once per image, and a product with each prompt."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.prompts = []

    def forward(self, images, prompts, image_index, generator=None):
        self.prompts.append(len(prompts))
        features = self.convolution(images)[image_index]
        return torch.einsum("pchw,c->phw", features, torch.ones(8))


def test_counts_operations_and_both_numbers_of_prompts():
    model = Convolution()
    cost = inference_cost(model, 64, "fp32")
    assert set(cost) | {"peak_memory_mib"} == set(COSTS)
    by_hand = 2 * 64 * 64 * (8 * 3 * 9 + 8)  # a multiplication and an addition are two
    assert cost["gflop_per_prompt"] * 1e9 == pytest.approx(by_hand)
    assert set(model.prompts) == {1, MANY}
    assert cost["ms_1_prompt"] > 0 and cost["ms_15_prompts"] > 0


def test_the_peak_is_remembered_after_the_memory_is_given_back():
    device = torch.device("cpu")
    restart_peak(device)
    before = peak_memory_mib(device)
    if not before:
        pytest.skip("this system keeps no peak of the resident memory")
    torch.ones(64 * 2**20).sum()  # 256 MiB, gone at once
    assert peak_memory_mib(device)["peak_memory_mib"] - before["peak_memory_mib"] > 200
