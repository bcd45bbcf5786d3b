import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.backbones import build_backbone
from models.products import convolution_is_quicker, quick_linear
from models.semantic import SemanticMap


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 4, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_stay_the_same(shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(7, 9, bias=bias), torch.randn(shape)
    expected = layer(x).detach()
    with torch.inference_mode(), quick_linear(x):
        out = layer(x)
        assert out.shape == expected.shape
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        assert F.linear(input=x, weight=layer.weight).shape == expected.shape


def test_a_backbone_gives_the_same_maps():
    torch.manual_seed(0)
    backbone, images = build_backbone("hiera_xt").eval(), torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = backbone(images)
        with quick_linear(images):
            maps = backbone(images)
    for actual, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


def test_only_where_it_is_quicker():
    x = torch.randn(2, 3)
    assert convolution_is_quicker(x)
    assert not convolution_is_quicker(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not convolution_is_quicker(x)
    torch.set_num_threads(1)
    assert not convolution_is_quicker(x)


def test_masks_are_the_same_with_one_thread_and_two():
    torch.manual_seed(0)
    maps, embeddings = torch.randn(1, 32, 16, 24), torch.randn(3, 5, 32)
    two = SemanticMap(maps).logits(embeddings, torch.zeros(3, dtype=torch.int64))
    torch.set_num_threads(1)
    one = SemanticMap(maps).logits(embeddings, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)
