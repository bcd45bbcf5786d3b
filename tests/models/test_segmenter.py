import pytest
import torch

from models.backbones import STRIDES, build_backbone
from models.config import ModelConfig
from models.segmenter import BoltzFormer, ImageEncoder, build_text_encoder
from models.text_encoder import TextEncoder

CONFIG = ModelConfig(
    width=32, heads=4, feedforward=64, layers=3, queries=4, pixel_layers=1, text_width=32, text_layers=1, text_heads=2
)
PROMPTS = ["nodule in lung CT", "right kidney in abdominal MRI", "liver"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BoltzFormer("hiera_xt", CONFIG).eval()


def test_shared_parts_start_from_torchs_seed_alone():
    """Whatever is drawn before, and however far down the pixel decoder goes."""
    starts = {}
    for finest, drawn in ((16, 0), (8, 5), (4, 99)):
        torch.manual_seed(7)
        torch.rand(drawn)
        text = build_text_encoder(CONFIG).state_dict()
        encoder = ImageEncoder("hiera_xt", CONFIG, finest).state_dict()
        for name, value in (encoder | text).items():
            assert torch.equal(value, starts.setdefault(name, value)), name
    torch.manual_seed(8)
    other = ImageEncoder("hiera_xt", CONFIG).state_dict()
    drawn = [name for name, value in other.items() if name.endswith("weight") and value.ndim > 1]
    assert drawn
    assert not any(torch.equal(other[name], starts[name]) for name in drawn)


def test_shared_parts_leave_torchs_draws_as_they_are():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    ImageEncoder("hiera_xt", CONFIG)
    assert torch.equal(torch.rand(3), expected)
    assert torch.initial_seed() == 7


@pytest.mark.parametrize("name", ["hiera_xt", "focal_xt"])
@pytest.mark.parametrize("size", [(64, 96), (100, 72)])
def test_backbones_give_four_maps_at_any_size(name, size):
    backbone = build_backbone(name)
    with torch.inference_mode():
        maps = backbone(torch.randn(1, 3, *size))
    assert [m.shape[1] for m in maps] == backbone.channels
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(-(-side // s) for side in size) for s in STRIDES]


def test_the_backbone_runs_once_per_image(model):
    seen = []
    model.image_encoder.backbone.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    index = torch.tensor([0, 0, 1])
    with torch.inference_mode():
        logits = model(torch.rand(2, 3, 64, 64) * 255, PROMPTS, index, generator=torch.Generator().manual_seed(0))
    assert seen == [2]
    assert logits.shape == (3, 32, 32)


def test_prompts_do_not_touch_each_other():
    torch.manual_seed(0)
    model = BoltzFormer("hiera_xt", CONFIG.model_copy(update={"attention": "full"})).eval()
    images = torch.rand(2, 3, 64, 64) * 255
    with torch.inference_mode():
        together = model(images, PROMPTS, torch.tensor([0, 0, 1]))
        for row, image in enumerate([0, 0, 1]):
            alone = model(images[image : image + 1], [PROMPTS[row]], torch.tensor([0]))
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
        assert (together[0] - together[1]).abs().max() > 1e-3


def test_equal_prompts_are_encoded_once_and_padding_is_zero():
    encoder = TextEncoder(32, 1, 2, 16)
    seen = []
    encoder.transformer.register_forward_hook(lambda *args: seen.append(1) or None)
    tokens, padding = encoder([PROMPTS[1], PROMPTS[2], PROMPTS[1]])
    assert len(seen) == 1
    assert torch.equal(tokens[0], tokens[2])
    assert padding.sum(1).tolist()[0] == 0 < padding.sum(1).tolist()[1]
    assert (tokens[padding] == 0).all()


def test_a_frozen_text_encoder_remembers_prompts():
    torch.manual_seed(0)
    encoder = TextEncoder(32, 1, 2, 16).eval()
    expected = encoder(PROMPTS)
    encoder.requires_grad_(False)
    seen = []
    encoder.transformer.register_forward_hook(lambda *args: seen.append(1) or None)
    with torch.inference_mode():
        encoder(PROMPTS[:1])
        tokens, padding = encoder(PROMPTS)
    assert len(seen) == 3
    torch.testing.assert_close(tokens, expected[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(padding, expected[1])
    alone, _ = encoder(PROMPTS[2:])  # whoever came with it, a prompt's tokens are the same to the bit
    assert torch.equal(alone[0], tokens[2][: alone.shape[1]])
    assert len(seen) == 3

    # another state forgets them
    encoder.load_state_dict({name: value * 2 for name, value in encoder.state_dict().items()})
    assert not torch.equal(encoder(PROMPTS[2:])[0], alone)


@pytest.mark.parametrize("backbone", ["hiera_xt", "focal_xt"])
def test_gradient_checkpointing_keeps_less_and_changes_nothing(backbone):
    images, index = torch.rand(2, 3, 64, 64) * 255, torch.tensor([0, 0, 1])
    results = {}
    for recompute in (False, True):
        torch.manual_seed(0)
        model = BoltzFormer(backbone, CONFIG).train()
        model.image_encoder.recompute = recompute
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.nbytes) or t, lambda t: t):
            logits = model(images, PROMPTS, index, generator=torch.Generator().manual_seed(0))
        logits.square().mean().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results[recompute] = logits.detach(), gradients, sum(kept)
    torch.testing.assert_close(results[True][0], results[False][0])
    torch.testing.assert_close(results[True][1], results[False][1], rtol=1e-4, atol=1e-6)
    assert results[True][2] < 0.6 * results[False][2]
