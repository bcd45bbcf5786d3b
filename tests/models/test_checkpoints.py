"""Values of published files in our modules, what does not fit, and what is no checkpoint."""

import argparse
import os
import pickle
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from baselines.sam import Sam
from models import backbones
from models.backbones import BACKBONES, build_backbone, hiera
from models.checkpoints import CheckpointError, load_published, match, read_checkpoint
from models.config import ModelConfig
from models.pixel_decoder import PixelDecoder
from models.published_names import SHARED
from models.segmenter import BoltzFormer, ImageEncoder
from models.text_encoder import TextEncoder

SMALL = ModelConfig(
    width=32, heads=4, feedforward=64, layers=3, queries=4, pixel_layers=2, text_width=32, text_layers=2, text_heads=2
)
UNUSED = {"sem_seg_head.predictor.class_embed", "sem_seg_head.predictor.language_encoder.logit_scale"}
HIERA = {"embed_dim": 16, "stages": (1, 2, 2, 1), "num_heads": 1, "global_att_blocks": (4,)}


@pytest.fixture
def tiny(monkeypatch):
    """A Hiera with its neck that is small enough to hold values."""
    monkeypatch.setitem(BACKBONES, "tiny", lambda: hiera("sam2_hiera_tiny", **HIERA))
    return "tiny"


def published(model):
    """The state of a BoltzFormer on Hiera as the authors would have saved it: the way back, written by hand."""
    there = {}
    state = dict(model.state_dict())
    for name in list(state):
        found = re.fullmatch(r"(decoder\.cross_attention\.\d+)\.query\.(weight|bias)", name)
        if found:
            parts = [state.pop(f"{found[1]}.{part}.{found[2]}") for part in ("query", "key", "value")]
            state[f"{found[1]}.multihead_attn.in_proj_{found[2]}"] = torch.cat(parts)
        found = re.fullmatch(r"(text_encoder.+)\.q_proj\.(weight|bias)", name)
        if found:
            parts = [state.pop(f"{found[1]}.{letter}_proj.{found[2]}") for letter in "qkv"]
            state[f"{found[1]}.in_proj_{found[2]}"] = torch.cat(parts)
    words = [
        ("image_encoder.backbone.trunk.model", "backbone.trunk"),
        ("mlp.fc1", "mlp.layers.0"),
        ("mlp.fc2", "mlp.layers.1"),
        *((f"image_encoder.backbone.neck.lateral.{i}", f"backbone.neck.convs.{3 - i}.conv") for i in range(4)),
        ("image_encoder.pixel_decoder", "sem_seg_head.pixel_decoder"),
        ("input_projection", "input_proj"),
        ("sem_seg_head.pixel_decoder.encoder", "sem_seg_head.pixel_decoder.transformer.encoder.layers"),
        *((f"laterals.{i}.0", f"adapter_{3 - i}") for i in range(3)),
        *((f"laterals.{i}.1", f"adapter_{3 - i}.norm") for i in range(3)),
        *((f"outputs.{i}.0", f"layer_{3 - i}") for i in range(3)),
        *((f"outputs.{i}.1", f"layer_{3 - i}.norm") for i in range(3)),
        ("output32.0", "layer_4"),
        ("output32.1", "layer_4.norm"),
        ("decoder.query_content", "decoder.query_feat"),
        ("decoder.query_position", "decoder.query_embed"),
        ("decoder.level", "decoder.level_embed"),
        ("decoder.norm", "decoder.decoder_norm"),
        ("decoder.prior_attention", "decoder.initial_self_attention_layer"),
        ("decoder.prior_feed_forward", "decoder.initial_ffn_layer"),
        ("decoder.cross_attention", "decoder.transformer_cross_attention_layers"),
        ("decoder.self_attention", "decoder.transformer_self_attention_layers"),
        ("decoder.feed_forward", "decoder.transformer_ffn_layers"),
        (".output.", ".multihead_attn.out_proj."),
        (".attention.", ".self_attn."),
        *((f"mask_embedding.{2 * i}", f"mask_embed.layers.{i}") for i in range(3)),
        ("text_encoder.transformer.encoder.layers", "LANG.encoder_transformer.resblocks"),
        ("text_encoder.transformer.embeddings.token_embedding", "LANG.encoder_transformer.token_embedding"),
        (
            "text_encoder.transformer.embeddings.position_embedding.weight",
            "LANG.encoder_transformer.positional_embedding",
        ),
        ("text_encoder.transformer.final_layer_norm", "LANG.encoder_transformer.ln_final"),
        ("text_encoder.projection.weight", "LANG.lang_proj"),
        ("pigma.deconvolution", "output_deconv"),
        ("pigma.convolution", "output_conv"),
    ]
    for name, value in state.items():
        renamed = name
        for ours, theirs in words:
            renamed = renamed.replace(ours, theirs)
        if renamed.startswith("LANG."):
            for ours, theirs in (
                ("self_attn", "attn"),
                ("layer_norm", "ln_"),
                ("mlp.layers.0", "mlp.c_fc"),
                ("mlp.layers.1", "mlp.c_proj"),
            ):
                renamed = renamed.replace(ours, theirs)
            renamed = renamed.replace("LANG.", "sem_seg_head.predictor.language_encoder.")
        if renamed.startswith("decoder."):
            renamed = renamed.replace("decoder.", "sem_seg_head.predictor.", 1)
        there[renamed] = value.T if renamed.endswith("lang_proj") else value
    width = model.decoder.config.width
    there["sem_seg_head.predictor.class_embed"] = torch.zeros(width, width)
    there["sem_seg_head.predictor.language_encoder.logit_scale"] = torch.zeros(())
    return {name: value.clone() for name, value in there.items()}


def shaken(model):
    """The model with every tensor random: a zero bias would hide a swap."""
    generator = torch.Generator().manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


# ------------------------------------------------------------------ values


def test_focal_values_agree_with_timms_reading_of_microsofts_names(monkeypatch):
    from timm.models.focalnet import checkpoint_filter_fn

    sizes = {"embed_dim": 8, "depths": (1, 1, 2, 1), "use_overlap_down": True, "use_post_norm": True}
    sizes |= {"layerscale_value": 1e-4, "normalize_modulator": True}
    monkeypatch.setitem(BACKBONES, "tiny_focal", lambda: backbones._focal(**sizes))
    model = BoltzFormer("tiny_focal", SMALL)
    trunk = shaken(BoltzFormer("tiny_focal", SMALL)).image_encoder.backbone.trunk.state_dict()
    theirs = {}
    for name, value in trunk.items():
        name = re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
        name = re.sub(r"ls(\d)\.gamma", r"gamma_\1", name).replace("_post", "").replace("stem", "patch_embed")
        linear = re.search(r"(modulation\.(f|proj)|mlp\.fc\d)\.weight", name)
        theirs[name] = value[:, :, 0, 0] if linear else value
    expected = checkpoint_filter_fn(dict(theirs), model.image_encoder.backbone.trunk)
    published = {f"backbone.{name}": value for name, value in theirs.items()}
    published["sem_seg_head.predictor.lang_encoder.logit_scale"] = torch.zeros(())
    renamed, _ = match(model, published, "x.pt", ["backbone"])
    assert len(renamed) == len(expected)
    for name, value in expected.items():
        assert torch.equal(renamed[f"image_encoder.backbone.trunk.{name}"], value)


def test_focal_normalises_each_output_and_not_what_the_next_stage_reads():
    backbone = build_backbone("focal_xt").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        maps = backbone(images)
        raw = backbone.trunk.forward_intermediates(images, intermediates_only=True)
    for ours, theirs in zip(maps, raw, strict=True):
        torch.testing.assert_close(ours, F.layer_norm(theirs.movedim(1, -1), theirs.shape[1:2]).movedim(-1, 1))


def test_a_whole_boltzformer_comes_back_bit_by_bit(tiny, tmp_path):
    theirs, ours = shaken(BoltzFormer(tiny, SMALL)), BoltzFormer(tiny, SMALL)
    torch.save({"model": published(theirs), "epoch": 3}, tmp_path / "theirs.pth")
    report = load_published(ours, tmp_path / "theirs.pth")
    assert set(report.ignored) == UNUSED and report.random == ()
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    assert str(report).startswith("theirs.pth (BoltzFormer): ")


def test_sam2s_own_image_encoder_gives_the_same_maps(tiny, tmp_path):
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck
    from sam2.modeling.backbones.image_encoder import ImageEncoder as TheirEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine

    torch.manual_seed(0)
    names = {"window_pos_embed_bkg_spatial_size": (7, 7), "drop_path_rate": 0.0}
    trunk = Hiera(**HIERA, **names)
    neck = FpnNeck(
        PositionEmbeddingSine(256), 256, trunk.channel_list, fpn_top_down_levels=[2, 3], fpn_interp_model="nearest"
    )
    theirs = TheirEncoder(trunk, neck).eval()
    nn.init.normal_(trunk.pos_embed), nn.init.normal_(trunk.pos_embed_window)
    state = {f"module.image_encoder.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"model": state}, tmp_path / "sam2.pt")

    model = Sam(tiny, SMALL).eval()
    report = load_published(model, tmp_path / "sam2.pt", SHARED)
    assert report.filled == ("backbone", "neck") and report.random == ("pixel_decoder", "text_encoder")
    images = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        expected = theirs(images)["backbone_fpn"]
        maps = model.image_encoder.backbone(images)
    for ours, their in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, their, rtol=1e-4, atol=1e-4)


class Parts(nn.Module):
    """Whatever parts a reference file speaks of, where BoltzFormer has them."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def parameters_of(tensors, prefix, mark):
    state = {prefix + name.removeprefix("param."): t for name, t in tensors.items() if name.startswith("param.")}
    return state | {mark: torch.zeros(())}  # a file of one part alone would be of no kind


@pytest.mark.parametrize("encoder", ["language_encoder.encoder_transformer", "lang_encoder.lang_encoder"])
def test_a_loaded_text_encoder_gives_the_reference_tokens(shared, encoder):
    home, transformer = encoder.split(".")
    t = load_file(shared / "reference" / "text_encoder.safetensors")
    state = parameters_of(t, f"sem_seg_head.predictor.{home}.", f"sem_seg_head.predictor.{home}.logit_scale")
    state = {name.replace("encoder_transformer", transformer): value for name, value in state.items()}
    ours = TextEncoder(width=64, layers=2, heads=4, output=64, context_length=12)
    ours.transformer.resize_token_embeddings(120, mean_resizing=False)
    model = Parts(text_encoder=ours)
    renamed, _ = match(model, state, "text.pt", ["text_encoder"])
    model.load_state_dict(renamed)
    real = t["attention_mask"].bool()
    tokens = ours.encode(t["input_ids"], t["attention_mask"])
    torch.testing.assert_close(tokens[real], t["token_emb"][real], rtol=1e-4, atol=1e-4)


def test_a_loaded_pixel_decoder_gives_the_reference_features(shared):
    t = load_file(shared / "reference" / "pixel_decoder.safetensors")
    channels = [t[f"in.res{i}"].shape[1] for i in (2, 3, 4, 5)]
    encoder = ImageEncoder.__new__(ImageEncoder)
    nn.Module.__init__(encoder)
    encoder.pixel_decoder = PixelDecoder(channels, width=64, heads=4, feedforward=128, layers=2)
    state = parameters_of(t, "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.lang_encoder.logit_scale")
    model = Parts(image_encoder=encoder)
    renamed, _ = match(model, state, "pixel.pt", ["pixel_decoder"])
    model.load_state_dict(renamed)
    visual, _ = encoder.pixel_decoder([t[f"in.res{i}"] for i in (2, 3, 4, 5)])
    for i in range(3):
        torch.testing.assert_close(visual[i], t[f"ms{i}"], rtol=1e-4, atol=1e-4)


def test_half_precision_becomes_the_models_own(tiny, tmp_path):
    theirs, ours = shaken(BoltzFormer(tiny, SMALL)), BoltzFormer(tiny, SMALL)
    half = {name: value.half() for name, value in published(theirs).items()}
    save_file({name: value.contiguous() for name, value in half.items()}, tmp_path / "half.safetensors")
    load_published(ours, tmp_path / "half.safetensors")
    for name, value in ours.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, theirs.state_dict()[name].half().float())


# ------------------------------------------------------------------ what does not fit


@pytest.fixture
def theirs(tiny):
    return published(BoltzFormer(tiny, SMALL))


def test_all_that_is_wrong_stands_in_one_line_and_the_model_is_left_alone(tiny, theirs, tmp_path):
    del theirs["sem_seg_head.predictor.query_feat.weight"]
    theirs["sem_seg_head.predictor.strange.weight"] = torch.zeros(1)
    theirs["sem_seg_head.pixel_decoder.adapter_9.weight"] = torch.zeros(1)
    theirs["output_conv.bias"] = torch.zeros(7)
    torch.save(theirs, tmp_path / "theirs.pt")
    model = BoltzFormer(tiny, SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_published(model, tmp_path / "theirs.pt")
    text = str(caught.value)
    assert "\n" not in text and text.startswith("theirs.pt (BoltzFormer) does not fit the model: ")
    assert "1 missing: decoder.query_content.weight" in text
    assert (
        "2 unexpected: sem_seg_head.predictor.strange.weight, sem_seg_head.pixel_decoder.adapter_9.weight" in text
        and "1 of another shape: pigma.convolution.bias is (7,) for (1,)" in text
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_long_list_ends_with_a_count(tiny, theirs):
    few = {name: value for name, value in theirs.items() if "pixel_decoder" not in name}
    missing = {name for name in BoltzFormer(tiny, SMALL).state_dict() if "pixel_decoder" in name}
    with pytest.raises(CheckpointError, match=rf"{len(missing)} missing: .* and {len(missing) - 10} more$"):
        match(BoltzFormer(tiny, SMALL), few, "few.pt")


def test_two_names_for_one_tensor_are_an_error(tiny, theirs):
    theirs["backbone.trunk.blocks.0.mlp.fc1.bias"] = theirs["backbone.trunk.blocks.0.mlp.layers.0.bias"]
    with pytest.raises(CheckpointError, match=r"1 unexpected: backbone\.trunk\.blocks\.0\.mlp\.fc1\.bias$"):
        match(BoltzFormer(tiny, SMALL), theirs, "twice.pt")


def test_names_of_no_kind_are_told():
    with pytest.raises(CheckpointError, match=r"^x\.pt is of no known kind \(first names: conv1\.weight, fc\.bias\)"):
        match(nn.Linear(1, 1), {"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, "x.pt")


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 1}, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_are_unwrapped(tmp_path, zipped, wrap, prefix):
    state = {f"{prefix}a.weight": torch.arange(3.0), f"{prefix}b": torch.tensor(2)}
    torch.save(wrap(state), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(tmp_path / "x.pt")
    assert list(found) == ["a.weight", "b"]
    assert torch.equal(found["a.weight"], torch.arange(3.0)) and found["b"] == 2


class Code:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def write_pickle(value):
    return lambda path: path.write_bytes(pickle.dumps(value))


def half_of(path):
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.pt", lambda path: None, "is no file: give the path"),
        ("x.pt", lambda path: path.mkdir(), "is no file: give the path"),
        ("x.pt", half_of, "is damaged or no checkpoint (PytorchStreamReader failed"),
        ("x.pt", lambda path: path.write_text("<!doctype html>"), "is damaged or no checkpoint"),
        ("x.pt", lambda path: path.write_bytes(b""), "is damaged or no checkpoint (EOFError)"),
        ("x.safetensors", lambda path: path.write_bytes(b"x" * 30), "is damaged or no checkpoint"),
        ("x.pt", lambda path: torch.save({"args": argparse.Namespace(a=1)}, path), "(argparse.Namespace), which can"),
        ("x.pt", write_pickle([1, 2]), "is a pickle torch did not write"),
        ("x.pt", lambda path: torch.save(torch.zeros(3), path), "holds no named tensors: give a state dict"),
        ("x.pt", lambda path: torch.save({"model": {}}, path), "holds no named tensors"),
        ("x.pt", lambda path: torch.save({"a": 1, "b": torch.zeros(2)}, path), "holds no named tensors"),
    ],
)
def test_what_is_no_checkpoint_is_told_in_a_line(tmp_path, name, write, message):
    path = tmp_path / name
    write(path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path} ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_is_not_run(tmp_path, save):
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    save({"model": Code(marker)}, path)
    with pytest.raises(CheckpointError, match="can run code when"):
        read_checkpoint(path)
    assert not marker.exists()
