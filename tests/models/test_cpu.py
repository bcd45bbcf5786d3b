import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import cpu
from models.backbones import build_backbone
from models.cpu import convolution_is_quicker, group_norm, quick
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
    with torch.inference_mode(), quick(x):
        out = layer(x)
        assert out.shape == expected.shape
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        assert F.linear(input=x, weight=layer.weight).shape == expected.shape


def test_a_backbone_gives_the_same_maps():
    torch.manual_seed(0)
    backbone, images = build_backbone("hiera_xt").eval(), torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = backbone(images)
        with quick(images):
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


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_overwrites_only_what_a_linear_layer_made(approximate):
    torch.manual_seed(0)
    layer, x = nn.Linear(7, 9), torch.randn(5, 7)
    expected = F.gelu(layer(x), approximate=approximate).detach()
    other = torch.randn(5, 9)
    kept = other.clone()
    with torch.inference_mode(), quick(x):
        hidden = layer(x)
        F.gelu(other, approximate=approximate)
        out = F.gelu(hidden, approximate=approximate)
    assert torch.equal(other, kept)
    assert out.data_ptr() == hidden.data_ptr()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [(), (3,), (2, 3)])
@pytest.mark.parametrize("queries", [1, 40])
def test_attention_by_rows_is_attention(heads, queries, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(cpu, "ROWS", 16)
    query, key, value = torch.randn(*heads, queries, 8), torch.randn(*heads, 24, 8), torch.randn(*heads, 24, 8)
    torch.testing.assert_close(
        cpu._attention_by_rows(query, key, value), F.scaled_dot_product_attention(query, key, value)
    )


@pytest.mark.skipif(torch.cpu._is_amx_tile_supported(), reason="with AMX torch's own kernel stays")
def test_long_attention_in_bf16_goes_by_rows(monkeypatch):
    torch.manual_seed(0)
    calls = []
    real = cpu._attention_by_rows
    monkeypatch.setattr(cpu, "_attention_by_rows", lambda *inputs: calls.append(1) or real(*inputs))
    for tokens, dtype, expected in ((1024, torch.bfloat16, [1]), (1023, torch.bfloat16, []), (1024, torch.float32, [])):
        inputs = [torch.randn(1, 2, tokens, 16, dtype=dtype) for _ in range(3)]
        with torch.inference_mode(), quick(inputs[0]):
            out = F.scaled_dot_product_attention(*inputs)
        assert calls == expected
        calls.clear()
        torch.testing.assert_close(out, F.scaled_dot_product_attention(*inputs), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_group_norm_is_the_same(dtype, layout, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(cpu, "STRIP", 200)  # several strips, the last one shorter
    norm = nn.GroupNorm(4, 16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3 * torch.randn(2, 16, 5, 7) + 2).to(dtype).to(memory_format=layout)
    expected = norm(x.float()).detach()
    kept = x.clone()
    torch.testing.assert_close(group_norm(x, norm.to(dtype)).float(), expected, rtol=2e-2, atol=2e-2)
    assert torch.equal(x, kept), "with gradients the input stays"
    with torch.inference_mode():
        out = group_norm(x, norm.float())
    assert (out.data_ptr() == x.data_ptr()) is (layout == torch.channels_last)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gradients_of_group_norm_are_the_same(dtype, layout):
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 16)
    nn.init.normal_(norm.weight)
    x = (3 * torch.randn(2, 16, 5, 7) + 2).to(dtype).to(memory_format=layout).requires_grad_()
    weights = torch.randn(2, 16, 5, 7)
    wanted = torch.autograd.grad((norm(x.float()) * weights).sum(), (x, norm.weight, norm.bias))
    norm = norm.to(dtype)
    out = group_norm(x, norm)
    assert out.is_contiguous(memory_format=layout) and out.dtype == dtype
    found = torch.autograd.grad((out.float() * weights).sum(), (x, norm.weight, norm.bias))
    for one, other in zip(found, wanted, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        scale = other.float().abs().max().item()
        torch.testing.assert_close(one.float(), other.float(), rtol=tolerance, atol=tolerance * scale)
