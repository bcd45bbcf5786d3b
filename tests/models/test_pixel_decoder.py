import pytest
import torch

from models.cpu import quick
from models.pixel_decoder import PixelDecoder
from models.plain import plain_pixel_decoder

CHANNELS = [8, 12, 16, 20]


def build():
    torch.manual_seed(0)
    return PixelDecoder(CHANNELS, width=32, heads=4, feedforward=64, layers=2).eval()


def maps_of(sizes):
    torch.manual_seed(1)
    return [torch.randn(2, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]


# of an image of 64 x 96 px, and of 90 x 70 px: every size rounded up, so that not every map is twice the next
@pytest.mark.parametrize("sizes", [((16, 24), (8, 12), (4, 6), (2, 3)), ((23, 18), (12, 9), (6, 5), (3, 3))])
@pytest.mark.parametrize("gradients", [True, False])
def test_it_is_the_plain_one(sizes, gradients):
    decoder, maps = build(), maps_of(sizes)
    visual, semantic = plain_pixel_decoder(decoder, maps)
    decoder = decoder.to(memory_format=torch.channels_last)
    maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    with torch.set_grad_enabled(gradients), quick(maps[0]):
        actual, made = decoder(maps)
        actual.append(made.map())
    for out, expected in zip(actual, (*visual, semantic), strict=True):
        assert out.requires_grad is gradients
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    if gradients:
        inputs = list(decoder.parameters())
        weights = [torch.randn_like(v) for v in actual]
        found, wanted = (
            torch.autograd.grad(sum((v * w).sum() for v, w in zip(outs, weights, strict=True)), inputs)
            for outs in (actual, (*visual, semantic))
        )
        for gradient, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


def test_it_leaves_its_input_alone():
    decoder, maps = build().to(memory_format=torch.channels_last), maps_of(((16, 24), (8, 12), (4, 6), (2, 3)))
    kept = [m.clone() for m in maps]
    with torch.inference_mode(), quick(maps[0]):
        decoder(maps)
    assert all(torch.equal(*pair) for pair in zip(maps, kept, strict=True))
