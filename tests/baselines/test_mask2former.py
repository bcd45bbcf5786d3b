"""transformers' Mask2Former called by hand, one prompt at a time."""

import pytest
import torch
from torch.nn import functional as F
from transformers import Mask2FormerForUniversalSegmentation

from baselines.mask2former import Mask2Former
from bench.interface import Batch
from models.backbones import IMAGENET, normalise
from models.config import ModelConfig

CONFIG = ModelConfig(
    width=32, heads=4, feedforward=64, layers=3, queries=4, pixel_layers=2, text_width=32, text_layers=1, text_heads=2
)
PROMPTS = ["nodule in lung CT", "right kidney in abdominal MRI", "tumor in colon CT"]
INDEX = torch.tensor([1, 0, 1])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Mask2Former("hiera_xt", CONFIG).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(3, 64, 96)
    masks[0, 5:8, 7:8], masks[1, 30:50, 20:70], masks[2, 10:20, 60:90] = 1, 1, 1
    return Batch(torch.rand(2, 3, 64, 96, generator=generator) * 255, PROMPTS, INDEX, masks)


def by_hand(model, image, prompt):
    """Masks (m, h, w) and classes (m, 2) of the package's own module, which makes its queries itself."""
    head, transformer = model.head, model.head.transformer
    pixels = head.pixel_decoder(model.image_encoder.backbone(normalise(image[None], IMAGENET)))
    learned = transformer.queries_features.weight.data.clone()
    transformer.queries_features.weight.data += model.text_prompt([prompt])[0]
    output = transformer(pixels.multi_scale_features, pixels.mask_features)
    transformer.queries_features.weight.data = learned
    return output.masks_queries_logits[-1][0], head.class_predictor(output.intermediate_hidden_states[-1][:, 0])


def test_it_is_the_package_called_by_hand(model, batch):
    with torch.no_grad():
        logits = model(batch.images, PROMPTS, INDEX)
        assert logits.shape == (3, 64, 96)
        for row, image in enumerate(INDEX.tolist()):
            masks, classes = by_hand(model, batch.images[image], PROMPTS[row])
            best = classes.softmax(-1)[:, 0].argmax()
            full = F.interpolate(masks[best][None, None], (64, 96), mode="bilinear")[0, 0]
            torch.testing.assert_close(logits[row], full, rtol=1e-3, atol=1e-3)


def test_its_loss_is_the_package_s(model, batch):
    """Of masks that are equal everywhere, so that the random points do not matter; weights by the package's model."""
    generator = torch.Generator().manual_seed(0)
    heights = torch.randn(CONFIG.layers + 1, 3, CONFIG.queries, 1, 1, generator=generator)
    masks = list(heights.expand(-1, -1, -1, 16, 24))
    classes = list(torch.randn(CONFIG.layers + 1, 3, CONFIG.queries, 2, generator=generator))
    model.candidates = lambda *_: (masks, classes)
    batch.masks = torch.ones(3, 64, 96)
    loss = model.training_loss(batch, generator)

    package = Mask2FormerForUniversalSegmentation(model.head.config)
    hidden = [{"masks_queries_logits": m, "class_queries_logits": c} for m, c in zip(masks, classes, strict=True)]
    objects = [torch.zeros(1, dtype=torch.int64)] * 3
    terms = package.get_loss_dict(**hidden[-1], mask_labels=list(batch.masks[:, None]), class_labels=objects,
                                  auxiliary_predictions=hidden[:-1])  # fmt: skip
    torch.testing.assert_close(loss, package.get_loss(terms), rtol=1e-3, atol=1e-3)


def test_its_points_are_drawn_from_the_generator_alone(model, batch):
    def loss(seed):
        torch.rand(3)  # another state of torch's own generator
        return model.training_loss(batch, torch.Generator().manual_seed(seed)).item()

    state = torch.get_rng_state()
    assert loss(0) == loss(0)
    assert loss(0) != loss(1)
    torch.set_rng_state(state)
    loss_before, after = torch.get_rng_state(), model.training_loss(batch, torch.Generator().manual_seed(2))
    assert after.isfinite()
    assert torch.equal(torch.get_rng_state(), loss_before)


def test_gradient_checkpointing_changes_nothing(model, batch):
    gradients = []
    for recompute in (False, True):
        model.image_encoder.recompute = recompute
        model.zero_grad()
        model.training_loss(batch, torch.Generator().manual_seed(0)).backward()
        gradients.append([p.grad.clone() for p in model.image_encoder.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))
