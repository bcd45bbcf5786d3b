"""Numerical comparison with the authors' implementation (random weights, fp32): outputs and gradients."""

import pytest
import torch
from torch.nn import functional as F

from models.backbones import hiera
from models.boltzmann import sample_tokens, threshold_tokens
from models.config import ModelConfig
from models.decoder import Decoder
from models.losses import segmentation_loss
from models.pigma import PiGMA
from models.pixel_decoder import PixelDecoder
from models.position import sine_position
from models.semantic import SemanticMap
from models.text_encoder import TextEncoder, tokenize


def load(shared, name):
    from safetensors.torch import load_file

    return load_file(shared / "reference" / f"{name}.safetensors")


def close(actual, expected, relative=1e-4):
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * max(scale, 1e-12))


def renamed(tensors, pairs, kind="param"):
    """Tensors `<kind>.<theirs>...` under our names; pairs of (their prefix, our prefix)."""
    return {
        ours + key.removeprefix(f"{kind}.{theirs}"): value
        for theirs, ours in pairs
        for key, value in tensors.items()
        if key.startswith(f"{kind}.{theirs}")
    }


def gradients_close(module, expected):
    """The gradients of all parameters; a bias that drops out of a softmax has rounding errors for a gradient."""
    assert expected
    for name, gradient in expected.items():
        if name.endswith("key.bias"):
            assert gradient.abs().max() < 1e-6
            continue
        actual = module.get_parameter(name).grad
        if name.endswith("in_proj_bias"):
            actual, gradient = (torch.cat([g.chunk(3)[0], g.chunk(3)[2]]) for g in (actual, gradient))
        close(actual, gradient)


def decoder_tensors(tensors, layers, kind="param"):
    pairs = [("decoder_norm.", "norm."), ("initial_self_attention_layer.norm.", "prior_attention.norm.")]
    pairs += [("initial_self_attention_layer.self_attn.", "prior_attention.attention.")]
    pairs += [("initial_ffn_layer.", "prior_feed_forward.")]
    pairs += [("query_feat.", "query_content."), ("query_embed.", "query_position."), ("level_embed.", "level.")]
    pairs += [(f"mask_embed.layers.{i}.", f"mask_embedding.{2 * i}.") for i in range(3)]
    for i in range(layers):
        pairs += [
            (f"transformer_self_attention_layers.{i}.self_attn.", f"self_attention.{i}.attention."),
            (f"transformer_self_attention_layers.{i}.norm.", f"self_attention.{i}.norm."),
            (f"transformer_cross_attention_layers.{i}.norm.", f"cross_attention.{i}.norm."),
            (f"transformer_cross_attention_layers.{i}.multihead_attn.out_proj.", f"cross_attention.{i}.output."),
            (f"transformer_ffn_layers.{i}.", f"feed_forward.{i}."),
        ]
    state = renamed(tensors, pairs, kind)
    for i in range(layers):
        for part in ("weight", "bias"):
            fused = tensors[f"{kind}.transformer_cross_attention_layers.{i}.multihead_attn.in_proj_{part}"]
            for name, value in zip(("query", "key", "value"), fused.chunk(3), strict=True):
                state[f"cross_attention.{i}.{name}.{part}"] = value
    return state


@pytest.mark.parametrize("path", ["projected", "absorbed", "gathered"])
@pytest.mark.parametrize(
    ("file", "attention"),
    [
        ("decoder_dense", "full"),
        ("decoder_threshold05", "threshold"),
        ("decoder_boltzmann_shared_heads", "boltzmann"),
        ("decoder_boltzmann", "boltzmann"),  # every head draws its own tokens
    ],
)
def test_decoder(shared, monkeypatch, file, attention, path):
    monkeypatch.setattr("models.attention.cheapest_path", lambda *args: path)
    t = load(shared, file)
    per_head = file == "decoder_boltzmann"
    decoder = Decoder(ModelConfig(width=64, heads=4, feedforward=128, layers=3, queries=5, attention=attention))
    decoder.load_state_dict(decoder_tensors(t, 3), strict=True)

    def choose(layer, logits):
        blocked, draw = t[f"mask{layer}"].unflatten(0, (2, 4)), t.get(f"rand{layer}")
        if not per_head:
            blocked = blocked[:, 0]
        if attention == "threshold":
            keep = threshold_tokens(logits)
        else:
            draw = draw.unflatten(0, (2, 4))
            keep = sample_tokens(
                logits[:, None] if per_head else logits, 1 / (1 + layer), 0.1, draw if per_head else draw[:, 0]
            )
        rescued = blocked.all(-1, keepdim=True)
        assert (keep == (~blocked | rescued)).float().mean() > 0.999
        return None if attention == "full" else keep

    leaves = {
        name: t[name].clone().requires_grad_() for name in ("x0", "x1", "x2", "mask_features", "grounding_tokens")
    }
    text = leaves["grounding_tokens"].transpose(0, 1)
    visual = [leaves[f"x{i}"] for i in range(3)]
    padding = torch.zeros(2, 7, dtype=torch.bool)
    semantic, index = SemanticMap(leaves["mask_features"]), torch.arange(2)
    out = semantic.logits(decoder(visual, semantic, text, padding, index, choose=choose), index)
    close(out, t["out"])
    (out * t["cotangent"]).mean().backward()
    for name, leaf in leaves.items():
        close(leaf.grad, t[f"grad.{name}"])
    gradients_close(decoder, decoder_tensors(t, 3, "grad.param"))


def test_pixel_decoder(shared):
    t = load(shared, "pixel_decoder")
    maps = [t[f"in.res{i}"].clone().requires_grad_() for i in (2, 3, 4, 5)]
    decoder = PixelDecoder([m.shape[1] for m in maps], width=64, heads=4, feedforward=128, layers=2)
    pairs = [("input_proj.", "input_projection."), ("mask_features.", "mask_features."), ("layer_4.", "output32.0.")]
    for i in range(2):
        layer = f"transformer.encoder.layers.{i}."
        pairs += [(f"{layer}self_attn.", f"encoder.{i}.attention.")]
        pairs += [(f"{layer}{part}.", f"encoder.{i}.{part}.") for part in ("linear1", "linear2", "norm1", "norm2")]
    for place, number in enumerate((3, 2, 1)):  # theirs count from the finest
        pairs += [(f"adapter_{number}.", f"laterals.{place}.0."), (f"layer_{number}.", f"outputs.{place}.0.")]

    def ours(kind):
        return {k.replace(".0.norm.", ".1."): v for k, v in renamed(t, pairs, kind).items()}

    decoder.load_state_dict(ours("param"), strict=True)
    visual, semantic = decoder(maps)
    close(semantic.map(), t["mask_features"])
    for i in range(3):
        close(visual[i], t[f"ms{i}"])
    (semantic.map().square().mean() + sum(v.square().mean() for v in visual)).backward()
    for i, m in zip((2, 3, 4, 5), maps, strict=True):
        close(m.grad, t[f"grad.in.res{i}"])
    gradients_close(decoder, ours("grad.param"))


def test_pigma(shared):
    t = load(shared, "pigma")
    pigma = PiGMA(queries=5)
    pairs = [("output_deconv.", "deconvolution."), ("output_conv.", "convolution.")]
    pigma.load_state_dict(renamed(t, pairs), strict=True)
    # with these maps as S and unit vectors as embeddings, the candidates are the maps themselves
    candidates = t["pred_gmasks"].clone().requires_grad_()
    out = pigma(torch.eye(5)[None], SemanticMap(candidates), t["image_normalised"], torch.zeros(1, dtype=torch.int64))
    close(out[:, None], t["out"])
    (F.interpolate(out[:, None], (64, 64), mode="area") * t["cotangent64"]).mean().backward()
    close(candidates.grad, t["grad.pred_gmasks"])
    gradients_close(pigma, renamed(t, pairs, "grad.param"))


@pytest.mark.parametrize(("name", "size"), [("pos_8x8", (8, 8)), ("pos_5x9", (5, 9)), ("pos_32x32", (32, 32))])
def test_sine_position(shared, name, size):
    expected = load(shared, "position_sine")[name][0].flatten(1).T
    close(sine_position(*size, 64), expected)


def test_loss_with_an_empty_target_and_with_resizing(shared):
    t = load(shared, "losses")
    logits = t["seg.pred"][:, 0].clone().requires_grad_()
    loss = segmentation_loss(logits, t["seg.target"][:, 0])
    close(loss, t["seg.loss"])
    loss.backward()
    close(logits.grad, t["seg.grad"][:, 0])
    logits = t["bl.pred"][:, 0].clone().requires_grad_()
    loss = segmentation_loss(logits, t["bl.target_up"][:, 0])
    close(loss, t["bl.loss_up"])
    loss.backward()
    close(logits.grad, t["bl.grad_up"][:, 0])
    close(segmentation_loss(t["bl.pred"][:, 0], t["bl.target_down"][:, 0]), t["bl.loss_down"])


def test_clip_tokens(shared):
    import json

    prompts = json.loads((shared / "reference" / "index.json").read_text())["clip_tokens"]["prompts"]
    t = load(shared, "clip_tokens")
    ids, attention = tokenize(prompts)
    length = ids.shape[1]
    expected = t["attention_mask"][:, :length].bool()
    assert torch.equal(attention.bool(), expected)
    assert torch.equal(ids[expected], t["input_ids"][:, :length][expected].to(ids.dtype))


def test_text_encoder(shared):
    t = load(shared, "text_encoder")
    encoder = TextEncoder(width=64, layers=2, heads=4, output=64, context_length=12)
    encoder.transformer.resize_token_embeddings(120, mean_resizing=False)
    pairs = [("encoder_transformer.token_embedding.", "embeddings.token_embedding.")]
    pairs += [("encoder_transformer.positional_embedding", "embeddings.position_embedding.weight")]
    pairs += [("encoder_transformer.ln_final.", "final_layer_norm.")]
    names = {"ln_1.": "layer_norm1.", "ln_2.": "layer_norm2.", "mlp.c_fc.": "mlp.fc1.", "mlp.c_proj.": "mlp.fc2."}
    names["attn.out_proj."] = "self_attn.out_proj."
    for i in range(2):
        block = f"encoder_transformer.resblocks.{i}."
        pairs += [(block + theirs, f"encoder.layers.{i}.{ours}") for theirs, ours in names.items()]
    state = renamed(t, pairs)
    for i in range(2):
        for kind in ("weight", "bias"):
            fused = t[f"param.encoder_transformer.resblocks.{i}.attn.in_proj_{kind}"]
            for name, part in zip(("q_proj", "k_proj", "v_proj"), fused.chunk(3), strict=True):
                state[f"encoder.layers.{i}.self_attn.{name}.{kind}"] = part
    encoder.transformer.load_state_dict(state, strict=True)
    encoder.projection.weight.data = t["param.lang_proj"].T
    real = t["attention_mask"].bool()
    tokens = encoder.encode(t["input_ids"], t["attention_mask"])
    close(tokens[real], t["token_emb"][real])


def test_hiera_with_its_neck(shared):
    t = load(shared, "hiera_tiny")
    backbone = hiera("sam2_hiera_tiny", embed_dim=16, stages=(1, 2, 3, 1), num_heads=1, global_att_blocks=(4,))
    pairs = [("trunk.", "trunk.model.")]
    pairs += [(f"neck.convs.{i}.conv.", f"neck.lateral.{3 - i}.") for i in range(4)]  # theirs start at the coarsest
    state = {
        k.replace("mlp.layers.0", "mlp.fc1").replace("mlp.layers.1", "mlp.fc2"): v for k, v in renamed(t, pairs).items()
    }
    backbone.load_state_dict(state, strict=True)
    image = t["image"].clone().requires_grad_()
    maps = backbone(image)
    for out, name in zip(maps, ("res2", "res3", "res4", "res5"), strict=True):
        close(out, t[name])
    sum(m.square().mean() for m in maps).backward()
    close(image.grad, t["grad.image"])
