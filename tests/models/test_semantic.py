import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import semantic as semantic_map
from models.semantic import SemanticMap


def case(images=2, size=(16, 24), seed=0):
    torch.manual_seed(seed)
    convolution = nn.Conv2d(8, 8, 3, padding=1)
    return torch.randn(images, 8, *size), convolution, torch.randn(5, 3, 8), torch.tensor([1, 0, 1, 1, 0]) % images


def expected(features, convolution, embeddings, index):
    return torch.einsum("ped,pdyx->peyx", embeddings, convolution(features)[index])


@pytest.mark.parametrize("images", [1, 2, 4])
@pytest.mark.parametrize("fold", [False, True])
def test_logits_are_products_with_the_map(images, fold):
    features, convolution, embeddings, index = case(images)
    inputs = [features.requires_grad_(), convolution.weight, convolution.bias, embeddings.requires_grad_()]
    semantic = SemanticMap(features, convolution)
    semantic.fold = fold
    semantic.logits_on((8, 12), embeddings, index)  # as in the decoder: what it keeps must not cut the gradient
    out, wanted = semantic.logits(embeddings, index), expected(features, convolution, embeddings, index)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(out)
    gradients = torch.autograd.grad((out * weight).sum(), inputs)
    for actual, reference in zip(gradients, torch.autograd.grad((wanted * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("strip", [semantic_map.STRIP, 1, 2400])
@pytest.mark.parametrize("grid", [(8, 12), (4, 6), (2, 3), (5, 7), (16, 24)])
def test_coarse_logits_are_the_resized_ones(grid, strip, fold, monkeypatch):
    monkeypatch.setattr(semantic_map, "STRIP", strip)
    features, convolution, embeddings, index = case()
    semantic = SemanticMap(features, convolution)
    semantic.fold = fold
    wanted = F.interpolate(
        expected(features, convolution, embeddings, index), size=grid, mode="bilinear", align_corners=False
    )
    out = semantic.logits_on(grid, embeddings, index)
    torch.testing.assert_close(out, wanted.flatten(2), rtol=1e-4, atol=1e-5)
    assert not out.requires_grad


def test_the_map_is_made_only_where_it_is_needed():
    features, convolution, embeddings, index = case()
    calls = []
    convolution.register_forward_hook(lambda *args: calls.append(1))
    for masks, made in ((8, False), (9, True)):  # d / 2 masks per image, and one more
        semantic = SemanticMap(features, convolution)
        semantic.plan(masks)
        semantic.logits(embeddings, index)
        for _ in range(3):
            semantic.logits_on((4, 6), embeddings, index)
        assert semantic.fold is not made
        assert calls == ([1] if made else [])


def test_a_map_given_as_it_is():
    features, _, embeddings, index = case()
    semantic = SemanticMap(features)
    semantic.plan(1)
    assert semantic.map() is features
    torch.testing.assert_close(
        semantic.logits(embeddings, index), torch.einsum("ped,pdyx->peyx", embeddings, features[index])
    )
