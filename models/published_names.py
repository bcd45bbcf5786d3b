"""How published checkpoints call the tensors of our modules, and which parts of a model each kind of them fills."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

# What a checkpoint may fill, by the names of BoltzFormer's parameters. The first four are every decoder's.
PARTS = {
    "backbone": "image_encoder.backbone.trunk.",
    "neck": "image_encoder.backbone.neck.",
    "pixel_decoder": "image_encoder.pixel_decoder.",
    "text_encoder": "text_encoder.",
    "decoder": "decoder.",
    "pigma": "pigma.",
}
SHARED = ("backbone", "neck", "pixel_decoder", "text_encoder")


class Rule(NamedTuple):
    """`theirs`, a regular expression for a whole name, becomes `ours`; several names share the tensor's rows."""

    theirs: str
    ours: str | tuple[str, ...]
    change: Callable[[Tensor], Tensor] = lambda tensor: tensor


def under(theirs: str, ours: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules with a prefix before both names."""

    def prefixed(names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return ours + names if isinstance(names, str) else tuple(ours + name for name in names)

    return tuple(Rule(re.escape(theirs) + rule.theirs, prefixed(rule.ours), rule.change) for rule in rules)


def _transposed(weight: Tensor) -> Tensor:
    return weight.transpose(0, -1)


def _as_convolution(weight: Tensor) -> Tensor:
    return weight[..., None, None]  # a linear layer over channels is a 1 x 1 convolution


HIERA = (
    Rule(r"(blocks\.\d+\.mlp)\.layers\.0\.(.+)", r"\1.fc1.\2"),
    Rule(r"(blocks\.\d+\.mlp)\.layers\.1\.(.+)", r"\1.fc2.\2"),
    Rule(r"(.+)", r"\1"),
)

# SAM 2 counts its neck from the coarsest level
NECK = tuple(Rule(rf"convs\.{i}\.conv\.(.+)", rf"lateral.{3 - i}.\1") for i in range(4))

FOCAL = (
    Rule(r"patch_embed\.(.+)", r"trunk.stem.\1"),
    # theirs reduce at the end of a stage, timm's at the beginning of the next
    *(Rule(rf"layers\.{i}\.downsample\.(.+)", rf"trunk.layers.{i + 1}.downsample.\1") for i in range(3)),
    Rule(r"(layers\.\d+\.blocks\.\d+)\.gamma_(\d)", r"trunk.\1.ls\2.gamma"),
    Rule(r"(layers\.\d+\.blocks\.\d+\.norm\d)\.(.+)", r"trunk.\1_post.\2"),
    Rule(r"(layers\.\d+\.blocks\.\d+\.(?:modulation\.(?:f|proj)|mlp\.fc\d)\.weight)", r"trunk.\1", _as_convolution),
    Rule(r"(layers\..+)", r"trunk.\1"),
    Rule(r"norm(\d\..+)", r"neck.norms.\1"),
)

PIXEL_DECODER = (
    Rule(r"input_proj\.(.+)", r"input_projection.\1"),
    Rule(r"transformer\.encoder\.layers\.(\d+)\.self_attn\.(.+)", r"encoder.\1.attention.\2"),
    Rule(r"transformer\.encoder\.layers\.(.+)", r"encoder.\1"),
    Rule(r"layer_4\.weight", r"output32.0.weight"),
    Rule(r"layer_4\.norm\.(.+)", r"output32.1.\1"),
    # theirs count from the finest
    *(Rule(rf"adapter_{n}\.weight", rf"laterals.{3 - n}.0.weight") for n in (1, 2, 3)),
    *(Rule(rf"adapter_{n}\.norm\.(.+)", rf"laterals.{3 - n}.1.\1") for n in (1, 2, 3)),
    *(Rule(rf"layer_{n}\.weight", rf"outputs.{3 - n}.0.weight") for n in (1, 2, 3)),
    *(Rule(rf"layer_{n}\.norm\.(.+)", rf"outputs.{3 - n}.1.\1") for n in (1, 2, 3)),
    Rule(r"(mask_features\..+)", r"\1"),
)

TEXT_TRANSFORMER = (
    Rule(r"(token_embedding\..+)", r"embeddings.\1"),
    Rule(r"positional_embedding", r"embeddings.position_embedding.weight"),
    Rule(r"ln_final\.(.+)", r"final_layer_norm.\1"),
    Rule(
        r"resblocks\.(\d+)\.attn\.in_proj_(weight|bias)",
        tuple(rf"encoder.layers.\1.self_attn.{name}_proj.\2" for name in "qkv"),
    ),
    Rule(r"resblocks\.(\d+)\.attn\.(.+)", r"encoder.layers.\1.self_attn.\2"),
    Rule(r"resblocks\.(\d+)\.ln_(\d\..+)", r"encoder.layers.\1.layer_norm\2"),
    Rule(r"resblocks\.(\d+)\.mlp\.c_fc\.(.+)", r"encoder.layers.\1.mlp.fc1.\2"),
    Rule(r"resblocks\.(\d+)\.mlp\.c_proj\.(.+)", r"encoder.layers.\1.mlp.fc2.\2"),
)

DECODER = (
    Rule(r"query_feat\.(.+)", r"query_content.\1"),
    Rule(r"query_embed\.(.+)", r"query_position.\1"),
    Rule(r"level_embed\.(.+)", r"level.\1"),
    Rule(r"transformer_self_attention_layers\.(\d+)\.self_attn\.(.+)", r"self_attention.\1.attention.\2"),
    Rule(r"transformer_self_attention_layers\.(\d+\.norm\..+)", r"self_attention.\1"),
    Rule(
        r"transformer_cross_attention_layers\.(\d+)\.multihead_attn\.in_proj_(weight|bias)",
        tuple(rf"cross_attention.\1.{name}.\2" for name in ("query", "key", "value")),
    ),
    Rule(r"transformer_cross_attention_layers\.(\d+)\.multihead_attn\.out_proj\.(.+)", r"cross_attention.\1.output.\2"),
    Rule(r"transformer_cross_attention_layers\.(\d+\.norm\..+)", r"cross_attention.\1"),
    Rule(r"transformer_ffn_layers\.(.+)", r"feed_forward.\1"),
    Rule(r"initial_self_attention_layer\.self_attn\.(.+)", r"prior_attention.attention.\1"),
    Rule(r"initial_self_attention_layer\.(norm\..+)", r"prior_attention.\1"),
    Rule(r"initial_ffn_layer\.(.+)", r"prior_feed_forward.\1"),
    Rule(r"decoder_norm\.(.+)", r"norm.\1"),
    *(Rule(rf"mask_embed\.layers\.{i}\.(.+)", rf"mask_embedding.{2 * i}.\1") for i in range(3)),
)

PIGMA = (
    Rule(r"output_deconv\.(.+)", r"deconvolution.\1"),
    Rule(r"output_conv\.(.+)", r"convolution.\1"),
)


def text_encoder_rules(theirs: str, transformer: str) -> tuple[Rule, ...]:
    """The text encoder at `theirs`, which calls its transformer `transformer`."""
    projection = Rule(r"lang_proj", r"projection.weight", _transposed)
    return (
        *under(f"{theirs}{transformer}.", "text_encoder.transformer.", TEXT_TRANSFORMER),
        *under(theirs, "text_encoder.", [projection]),
    )


@dataclass(frozen=True)
class Kind:
    """A family of published checkpoints. `sign` is a name that only it has; `unused` are names that no rule needs."""

    title: str
    sign: str
    fills: tuple[str, ...]  # of PARTS: every parameter there has to come from the file
    rules: tuple[Rule, ...]
    unused: str = r"(?!)"  # matches nothing


HEAD = "sem_seg_head."
PREDICTOR = "sem_seg_head.predictor."

# Backbone, pixel decoder and text encoder of X-Decoder, SEEM and BiomedParse.
XDECODER = (
    *under("backbone.", "image_encoder.backbone.", FOCAL),
    *under(f"{HEAD}pixel_decoder.", "image_encoder.pixel_decoder.", PIXEL_DECODER),
    *text_encoder_rules(f"{PREDICTOR}lang_encoder.", "lang_encoder"),
)

KINDS = (
    Kind(
        "BoltzFormer",
        sign=r"sem_seg_head\.predictor\.language_encoder\..+",
        fills=tuple(PARTS),
        rules=(
            *under("backbone.trunk.", "image_encoder.backbone.trunk.model.", HIERA),
            *under("backbone.neck.", "image_encoder.backbone.neck.", NECK),
            *under("backbone.", "image_encoder.backbone.", FOCAL),
            *under(f"{HEAD}pixel_decoder.", "image_encoder.pixel_decoder.", PIXEL_DECODER),
            *text_encoder_rules(f"{PREDICTOR}language_encoder.", "encoder_transformer"),
            *under(PREDICTOR, "decoder.", DECODER),
            *under("", "pigma.", PIGMA),
        ),
        unused=r"sem_seg_head\.predictor\.(class_embed|language_encoder\.logit_scale)",
    ),
    Kind(
        "X-Decoder / SEEM",
        sign=r"sem_seg_head\.predictor\.lang_encoder\..+",
        fills=SHARED,
        rules=XDECODER,
        # its own decoder, and what BiomedParse adds
        unused=r"sem_seg_head\.predictor\.(?!lang_encoder\.).+"
        r"|sem_seg_head\.predictor\.lang_encoder\.(logit_scale|biomed_encoder\..+)"
        r"|criterion\..+|dilation_kernel",
    ),
    Kind(
        "SAM 2",
        sign=r"image_encoder\.trunk\..+",
        fills=("backbone", "neck"),
        rules=(
            *under("image_encoder.trunk.", "image_encoder.backbone.trunk.model.", HIERA),
            *under("image_encoder.neck.", "image_encoder.backbone.neck.", NECK),
        ),
        # the memory and the prompted mask decoder
        unused=r"(memory_attention|memory_encoder|sam_mask_decoder|sam_prompt_encoder|mask_downsample"
        r"|obj_ptr_proj|obj_ptr_tpos_proj)\..+"
        r"|maskmem_tpos_enc|no_mem_embed|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial",
    ),
    Kind(
        "timm's Hiera",
        sign=r"blocks\.0\.attn\.qkv\.weight",
        fills=("backbone",),
        rules=under("", "image_encoder.backbone.trunk.model.", HIERA),
        unused=r"head\..+",
    ),
    Kind(
        "timm's FocalNet",
        sign=r"stem\.proj\.weight",
        fills=("backbone",),
        rules=under("", "image_encoder.backbone.trunk.", [Rule(r"((?:stem|layers)\..+)", r"\1")]),
        unused=r"(head|norm)\..+",
    ),
)
