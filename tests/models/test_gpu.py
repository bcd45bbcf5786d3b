"""The fast forms on a GPU: the same function as the plain way there, and no wait for the host in the sampling."""

import pytest
import torch

from models.attention import CrossAttention
from models.config import ModelConfig
from models.decoder import Decoder
from models.pigma import PiGMA
from models.plain import plain_cross_attention, plain_forward
from models.segmenter import BoltzFormer
from models.semantic import SemanticMap

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CONFIG = ModelConfig(
    width=64, heads=4, feedforward=64, layers=3, queries=4, pixel_layers=1, text_width=32, text_layers=1, text_heads=2
)
DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def exact_products():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def draws():
    return torch.Generator(DEVICE).manual_seed(0)


def test_model_equals_the_plain_way():
    torch.manual_seed(0)
    model = BoltzFormer("hiera_xt", CONFIG).to(DEVICE).eval()
    images, index = torch.rand(2, 3, 64, 64, device=DEVICE) * 255, torch.tensor([0, 0, 1], device=DEVICE)
    prompts = ["nodule", "right kidney in MRI", "liver"]
    fast = model(images, prompts, index, generator=draws())
    plain = plain_forward(model, images, prompts, index, draws())
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("path", ["projected", "absorbed", "gathered"])
def test_every_form_of_attention(path):
    torch.manual_seed(0)
    attention = CrossAttention(64, 4).to(DEVICE)
    queries, position = torch.randn(3, 5, 64, device=DEVICE), torch.randn(5, 64, device=DEVICE)
    features, level = torch.randn(2, 48, 64, device=DEVICE, requires_grad=True), torch.randn(64, device=DEVICE)
    index = torch.tensor([1, 0, 1], device=DEVICE)
    keep = torch.rand(3, 5, 48, device=DEVICE) < 0.3
    keep[..., 0] = True
    out = attention(queries, position, features, (8, 6), level, index, keep, path)
    expected, _ = plain_cross_attention(attention, queries, position, features[index], (8, 6), level, keep)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(o.square().sum(), features)[0] for o in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_the_decoder_does_not_wait_for_the_host():
    decoder, pigma = Decoder(CONFIG).to(DEVICE).eval(), PiGMA(CONFIG.queries).to(DEVICE)
    convolution, images = torch.nn.Conv2d(64, 64, 3, padding=1).to(DEVICE), torch.randn(2, 3, 64, 64, device=DEVICE)
    visual = [torch.randn(2, 64, n, n, device=DEVICE) for n in (2, 4, 8)]
    features, index = torch.randn(2, 64, 16, 16, device=DEVICE), torch.tensor([0, 1, 1], device=DEVICE)
    text, padding = torch.randn(3, 5, 64, device=DEVICE), torch.zeros(3, 5, dtype=torch.bool, device=DEVICE)

    def masks(generator):
        semantic = SemanticMap(features, convolution)
        semantic.plan(3 * pigma.masks)
        return pigma(decoder(visual, semantic, text, padding, index, generator), semantic, images, index)

    with torch.inference_mode():
        masks(draws())  # what is cached once may wait
        generator = draws()
        torch.cuda.set_sync_debug_mode("error")
        try:
            masks(generator)
        finally:
            torch.cuda.set_sync_debug_mode("default")
