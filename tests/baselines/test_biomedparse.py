"""BiomedParse v1: its file's names, and its grounding path against one computed by hand from tensors of those names."""

import json
import re

import pytest
import torch
from torch.nn import functional as F

from baselines import biomedparse
from baselines.biomedparse import UNUSED, WEIGHTS, BiomedParse, build_model, try_weights
from models.checkpoints import CheckpointError, match
from models.config import ModelConfig
from models.position import sine_position

PREDICTOR = "sem_seg_head.predictor."
WIDTH, HEADS, LAYERS, QUERIES = 32, 4, 4, 7
SMALL = ModelConfig(
    width=WIDTH,
    heads=HEADS,
    feedforward=48,
    layers=LAYERS,
    queries=QUERIES,
    pixel_layers=1,
    text_width=32,
    text_layers=1,
    text_heads=2,
    attention="threshold",
    text_prior=False,
    pigma=False,
)
PROMPTS = ["liver in abdominal CT", "nodule", "the left kidney in an abdominal MRI"]


@pytest.fixture
def manifest(shared):
    """The published file without its values."""
    shapes = json.loads((shared / "reference" / "manifests" / "biomedparse_v1.json").read_text())
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def full():
    with torch.device("meta"):
        return build_model()


@pytest.fixture(scope="module")
def published():
    """The decoder of a small model, every tensor random, by its published names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "query_feat.weight": (QUERIES, WIDTH),
        "query_embed.weight": (QUERIES, WIDTH),
        "level_embed.weight": (3, WIDTH),
        "class_embed": (WIDTH, WIDTH),
    }
    for i in range(LAYERS):
        for kind, attention in (("self", "self_attn"), ("cross", "multihead_attn")):
            name = f"transformer_{kind}_attention_layers.{i}."
            shapes |= {f"{name}{attention}.in_proj_weight": (3 * WIDTH, WIDTH), f"{name}norm.weight": (WIDTH,)}
            shapes |= {f"{name}{attention}.in_proj_bias": (3 * WIDTH,), f"{name}norm.bias": (WIDTH,)}
            shapes |= {f"{name}{attention}.out_proj.weight": (WIDTH, WIDTH)}
            shapes |= {f"{name}{attention}.out_proj.bias": (WIDTH,)}
        name = f"transformer_ffn_layers.{i}."
        shapes |= {f"{name}linear1.weight": (48, WIDTH), f"{name}linear1.bias": (48,), f"{name}norm.weight": (WIDTH,)}
        shapes |= {f"{name}linear2.weight": (WIDTH, 48), f"{name}linear2.bias": (WIDTH,), f"{name}norm.bias": (WIDTH,)}
    shapes |= {"decoder_norm.weight": (WIDTH,), "decoder_norm.bias": (WIDTH,)}
    for i in range(3):
        shapes |= {f"mask_embed.layers.{i}.weight": (WIDTH, WIDTH), f"mask_embed.layers.{i}.bias": (WIDTH,)}
    tensors = {PREDICTOR + name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, tensor in tensors.items():  # queries that differ to the end, or it would not matter which one is chosen
        tensor += 1 if name.endswith("norm.weight") else 0
        tensor *= 10 if "query_feat" in name else 1
    return tensors


@pytest.fixture(scope="module")
def small(published):
    """A whole small model that holds the published decoder."""
    torch.manual_seed(0)
    model = BiomedParse("hiera_xt", SMALL).eval().requires_grad_(False)
    state, _ = match(model, published, "small.pt", ["decoder"], WEIGHTS)
    assert set(state) == {name for name in model.state_dict() if name.startswith("decoder.")}
    model.load_state_dict(state, strict=False)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 96, 128), generator=torch.Generator().manual_seed(1)).float()


# ------------------------------------------------------------------ the published names


def test_every_tensor_of_the_file_fills_a_parameter_or_is_unused_for_a_reason(manifest, full):
    state, report = match(full, manifest, "biomedparse_v1.pt", kind=WEIGHTS)
    assert set(state) == set(full.state_dict()) and report.random == ()
    used = sum(manifest[name].numel() for name in manifest if name not in report.ignored)
    assert used == report.parameters == sum(parameter.numel() for parameter in full.parameters())
    reasons = [[reason for pattern, reason in UNUSED.items() if re.fullmatch(pattern, n)] for n in report.ignored]
    assert all(len(found) == 1 for found in reasons)
    assert {found[0] for found in reasons} == set(UNUSED.values()), "a reason for nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(f"{PREDICTOR}class_embed"),
            "biomedparse_v1.pt (BiomedParse) does not fit the model: 1 missing: decoder.class_embedding",
        ),
        (
            lambda t: t.update({f"{PREDICTOR}transformer_ffn_layers.9.norm.weight": torch.zeros(512)}),
            f"1 unexpected: {PREDICTOR}transformer_ffn_layers.9.norm.weight",
        ),
        (
            lambda t: t.update({f"{PREDICTOR}query_feat.weight": torch.zeros(100, 512)}),
            "1 of another shape: decoder.query_content.weight is (100, 512) for (101, 512)",
        ),
    ],
)
def test_a_file_that_is_not_exactly_this_one_is_refused_in_a_line(manifest, full, change, message):
    change(manifest)
    with pytest.raises(CheckpointError) as caught:
        match(full, manifest, "biomedparse_v1.pt", kind=WEIGHTS)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused_before_a_run(tmp_path):
    torch.save({"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(3)}, tmp_path / "sam2.pt")
    with pytest.raises(CheckpointError, match=r"^sam2.pt \(BiomedParse\) does not fit the model: 1008 missing"):
        try_weights(None, tmp_path / "sam2.pt")


# ------------------------------------------------------------------ the grounding path


def attention(weights, name, query, key, value, blocked=None):
    """Multi-head attention of (n, d) on (N, d) as it is written in textbooks; blocked: (n, N) bool."""
    parts = weights[f"{name}.in_proj_weight"].chunk(3), weights[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (x @ weight.T + bias for x, weight, bias in zip((query, key, value), *parts, strict=True))
    heads = []
    for head in range(HEADS):
        mine = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        scores = q[:, mine] @ k[:, mine].T / (WIDTH // HEADS) ** 0.5
        if blocked is not None:
            scores[blocked] = -torch.inf
        heads.append(scores.softmax(dim=1) @ v[:, mine])
    return torch.cat(heads, dim=1) @ weights[f"{name}.out_proj.weight"].T + weights[f"{name}.out_proj.bias"]


def normed(weights, name, x):
    return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])


def by_hand(published, visual, semantic, text):
    """Every query's mask logits (m, h, w), and how alike it is to the text (m,), for one prompt.

    visual: V at strides 32, 16, 8, each (d, h_s, w_s); semantic: S (d, h, w); text: (T, d), the end of text last.
    """
    weights = {name.removeprefix(PREDICTOR): tensor for name, tensor in published.items()}
    queries, place = weights["query_feat.weight"], weights["query_embed.weight"]
    tokens, token_place = text, text

    def masks(queries):
        x = normed(weights, "decoder_norm", queries)
        for i in range(3):
            x = x @ weights[f"mask_embed.layers.{i}.weight"].T + weights[f"mask_embed.layers.{i}.bias"]
            x = x.relu() if i < 2 else x
        return torch.einsum("qd,dhw->qhw", x, semantic)

    for i in range(LAYERS):
        features = visual[i % 3]
        memory = features.flatten(1).T + weights["level_embed.weight"][i % 3]
        small = F.interpolate(masks(queries)[None], size=features.shape[1:], mode="bilinear", align_corners=False)[0]
        blocked = small.flatten(1).sigmoid() < 0.5
        blocked[blocked.all(dim=1)] = False
        keys = memory + sine_position(*features.shape[1:], WIDTH)
        name = f"transformer_cross_attention_layers.{i}"
        read = attention(weights, f"{name}.multihead_attn", queries + place, keys, memory, blocked)
        queries = normed(weights, f"{name}.norm", queries + read)

        both, both_places = torch.cat((queries, tokens)), torch.cat((place, token_place))
        name = f"transformer_self_attention_layers.{i}"
        mixed = attention(weights, f"{name}.self_attn", both + both_places, both + both_places, both)
        both = normed(weights, f"{name}.norm", both + mixed)
        name = f"transformer_ffn_layers.{i}"
        hidden = (both @ weights[f"{name}.linear1.weight"].T + weights[f"{name}.linear1.bias"]).relu()
        forward = hidden @ weights[f"{name}.linear2.weight"].T + weights[f"{name}.linear2.bias"]
        both = normed(weights, f"{name}.norm", both + forward)
        queries, tokens = both[:QUERIES], both[QUERIES:]

    classes = normed(weights, "decoder_norm", queries) @ weights["class_embed"]
    alike = (classes / classes.norm(dim=1, keepdim=True)) @ (text[-1] / text[-1].norm())
    return masks(queries), alike


def test_the_grounding_path_is_that_of_a_computation_by_hand(small, published, images):
    image_index = torch.tensor([0, 1, 1])
    with torch.inference_mode():
        logits = small(images, PROMPTS, image_index)
        features = small.image_encoder(images)
        text, padding = small.text_encoder(PROMPTS)
        chosen = []
        for i, image in enumerate(image_index):
            visual = [scale[image] for scale in features.visual]
            masks, alike = by_hand(published, visual, features.semantic.map()[image], text[i][~padding[i]])
            chosen.append(int(alike.argmax()))
            torch.testing.assert_close(logits[i], masks[chosen[i]], rtol=1e-3, atol=1e-3)
            others = [masks[q] for q in range(QUERIES) if q != chosen[i]]
            assert all((mask - logits[i]).abs().max() > 0.1 for mask in others), "another query's would have done"
    assert logits.shape == (3, 24, 32)
    assert len(set(chosen)) > 1, "one query for all prompts: the choice was not tested"


def test_images_are_normalised_by_the_inference_configuration(small, images):
    with torch.inference_mode():
        normalised = small.image_encoder(images).images
    expected = (images[:, 1] - 59.293) / 60.865
    torch.testing.assert_close(normalised[:, 1], expected)


def test_an_answer_does_not_depend_on_what_else_is_asked(small, images):
    with torch.inference_mode():
        together = small(images, PROMPTS, torch.tensor([0, 1, 0]))
        alone = [small(images[i][None], [p], torch.tensor([0])) for i, p in zip((0, 1, 0), PROMPTS, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[2], atol=1e-2)  # the prompt decides


def test_the_published_sizes(full):
    config = full.decoder.config
    assert (config.queries, config.layers, config.width, biomedparse.IMAGE_SIZE) == (101, 9, 512, 1024)
    assert full.image_encoder.backbone.channels == [192, 384, 768, 1536]
