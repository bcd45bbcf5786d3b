"""Published names and shapes against ours at full size: the authors' manifests, Meta's own modules and timm."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch

from baselines.sam import Sam
from baselines.sam2 import Sam2
from baselines.seem import build_seem
from models.checkpoints import CheckpointError, match
from models.config import FULL
from models.published_names import SHARED
from models.segmenter import BoltzFormer

UNUSED = {"sem_seg_head.predictor.class_embed", "sem_seg_head.predictor.language_encoder.logit_scale"}


def full_size(backbone, build=BoltzFormer):
    with torch.device("meta"):
        return build(backbone, FULL)


def manifest(shared, name):
    shapes = json.loads((shared / "reference" / "manifests" / f"{name}.json").read_text())
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def sam2_model(config):
    """Meta's SAM 2 from its own YAML, without Hydra's search path."""
    import sam2
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    return instantiate(OmegaConf.load(Path(sam2.__file__).parent / "configs" / f"{config}.yaml").model)


@pytest.mark.parametrize(("backbone", "millions"), [("hiera_s", 171.15), ("hiera_bp", 205.94), ("focal_l", 343.53)])
def test_full_size_models_have_the_published_number_of_parameters(backbone, millions):
    model = full_size(backbone)
    unused = 512 * 512 + 1  # the authors' class_embed and logit_scale
    total = sum(p.numel() for p in model.parameters()) + unused
    assert round(total / 1e6, 2) == millions


def test_the_parts_of_hiera_s_have_the_published_sizes():
    model = full_size("hiera_s")
    encoder = model.image_encoder
    parts = [encoder.backbone, encoder.pixel_decoder, model.text_encoder, model.decoder, model.pigma]
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    counts[3] += 512 * 512  # class_embed stands in the authors' decoder
    assert [round(count / 1e6, 2) for count in counts[:4]] == [34.32, 31.24, 63.43, 42.14]
    assert counts[4] == 16_664


@pytest.mark.parametrize("backbone", ["hiera_s", "hiera_bp", "focal_l"])
def test_every_published_name_has_its_place_and_every_parameter_its_value(shared, backbone):
    model = full_size(backbone)
    tensors = manifest(shared, f"boltzformer_{backbone.replace('_', '-')}")
    state, report = match(model, tensors, "theirs.pt")
    assert set(state) == set(model.state_dict())
    assert set(report.ignored) == UNUSED
    assert report.random == () and report.kind == "BoltzFormer"
    unused = sum(tensors[name].numel() for name in UNUSED)
    assert report.parameters + unused == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize(
    ("config", "backbone"),
    [
        ("sam2/sam2_hiera_s", "hiera_s"),
        ("sam2/sam2_hiera_b+", "hiera_bp"),
        ("sam2.1/sam2.1_hiera_s", "hiera_s"),
    ],
)
def test_all_names_of_sam2_are_known(config, backbone):
    theirs = sam2_model(config)
    _, report = match(full_size(backbone), theirs.state_dict(), "sam2.pt")
    encoder = theirs.image_encoder
    assert report.filled == ("backbone", "neck")
    assert report.parameters == sum(p.numel() for p in encoder.parameters())
    assert len(report.ignored) == len(theirs.state_dict()) - len(encoder.state_dict())
    assert report.random == ("pixel_decoder", "text_encoder", "decoder", "pigma")


@pytest.mark.parametrize(
    ("name", "backbone", "head"),
    [
        ("sam2_hiera_small", "hiera_s", {"head.norm.weight", "head.norm.bias"}),
        ("focalnet_large_fl4", "focal_l", {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}),
    ],
)
def test_timms_own_names_are_known(name, backbone, head):
    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False).state_dict()
    _, report = match(full_size(backbone), theirs, "model.safetensors")
    assert report.filled == ("backbone",) and "neck" in report.random
    assert set(report.ignored) == head


@pytest.mark.parametrize("build", [Sam, Sam2, build_seem, BoltzFormer])
def test_biomedparse_and_with_it_x_decoder_and_seem_fill_what_is_shared(shared, build):
    tensors = manifest(shared, "biomedparse_v1")
    model = full_size("focal_l", build)
    state, report = match(model, tensors, "biomedparse_v1.pt")
    assert report.kind == "X-Decoder / SEEM" and report.filled == SHARED
    text = "text_prompt.encoder." if build is Sam or build is Sam2 else "text_encoder."
    assert set(state) == {name for name in model.state_dict() if name.startswith(("image_encoder.", text))}
    if build is not Sam:
        used = ("backbone.", "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.lang_encoder.lang_")
        assert set(report.ignored) == {name for name in tensors if not name.startswith(used)}


def test_focal_agrees_with_timms_reading_of_microsofts_names(shared):
    from timm.models.focalnet import checkpoint_filter_fn

    tensors = manifest(shared, "biomedparse_v1")
    model = full_size("focal_l")
    state, _ = match(model, tensors, "x.pt")
    prefix = "image_encoder.backbone.trunk."
    backbone = {
        name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")
    }
    # the norms of the outputs are X-Decoder's, timm knows nothing of them
    trunk = {name: tensor for name, tensor in backbone.items() if not name.startswith("norm")}
    expected = checkpoint_filter_fn(trunk, model.image_encoder.backbone.trunk)
    assert {prefix + name: tensor.shape for name, tensor in expected.items()} == {
        name: tensor.shape for name, tensor in state.items() if name.startswith(prefix)
    }
    assert {f"neck.norms.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")} == {
        name.removeprefix("image_encoder.backbone.") for name in state if "backbone.neck." in name
    }


# Sam ends at stride 16: of the pyramid it has only the first level
@pytest.mark.parametrize(("build", "unused_levels"), [(Sam, (1, 2)), (Sam2, ()), (build_seem, ()), (BoltzFormer, ())])
def test_every_decoder_takes_what_it_shares(shared, build, unused_levels):
    tensors = manifest(shared, "boltzformer_hiera-s")
    state, report = match(full_size("hiera_s", build), tensors, "theirs.pt", SHARED)
    assert report.filled == SHARED
    assert all(name.startswith(("image_encoder.", "text_encoder.", "text_prompt.encoder.")) for name in state)
    shared_names = {name for name in tensors if name.startswith(("backbone.", "sem_seg_head.pixel_decoder."))}
    left_out = {f"sem_seg_head.pixel_decoder.{kind}_{n}" for n in unused_levels for kind in ("adapter", "layer")}
    left_out |= {"sem_seg_head.pixel_decoder.mask_features"} if unused_levels else set()
    expected = {n for n in shared_names if any(n.startswith(f"{module}.") for module in left_out)}
    assert shared_names & set(report.ignored) == expected


@pytest.mark.parametrize(("model", "file"), [("hiera_s", "hiera_bp"), ("hiera_t", "hiera_s"), ("focal_l", "hiera_s")])
def test_the_weights_of_another_backbone_are_named(model, file):
    trunk = full_size(file).image_encoder.backbone.trunk.state_dict()
    state = {name.replace("model.", "image_encoder.trunk.", 1): value for name, value in trunk.items()}
    state = {name.replace("mlp.fc1", "mlp.layers.0").replace("mlp.fc2", "mlp.layers.1"): v for name, v in state.items()}
    message = f"big.pt (SAM 2) holds the backbone {file}, and the model has another: take a model with {file}"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}"):
        match(full_size(model), state, "big.pt")
