import pytest
import torch
from torch import nn

from models.pigma import PiGMA
from models.plain import plain_pigma
from models.semantic import SemanticMap


@pytest.mark.parametrize("queries", [3, 40])  # fewer and more than the 17 masks it is computed from
def test_equals_the_layers_as_drawn(queries):
    torch.manual_seed(0)
    pigma, convolution = PiGMA(queries, channels=6), nn.Conv2d(16, 16, 3, padding=1)
    features, images = torch.randn(2, 16, 12, 8), torch.randn(2, 3, 48, 32)
    embeddings, index = torch.randn(3, queries, 16, requires_grad=True), torch.tensor([1, 0, 1])
    inputs = [embeddings, *pigma.parameters(), convolution.weight]

    def gradients(out):
        return torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), inputs)

    candidates = torch.einsum("pmd,pdyx->pmyx", embeddings, convolution(features)[index])
    expected = plain_pigma(pigma, candidates, images[index])
    wanted = gradients(expected)
    for fold in (False, True):
        semantic = SemanticMap(features, convolution)
        semantic.fold = fold
        out = pigma(embeddings, semantic, images, index)
        assert out.shape == (3, 24, 16)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        for actual, reference in zip(gradients(out), wanted, strict=True):
            torch.testing.assert_close(actual, reference, rtol=1e-3, atol=1e-3)
