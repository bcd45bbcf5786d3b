"""Published weights into our modules, strictly: each name of a file has a rule here or is listed as unused.

A rule is a regular expression for a published name and the name of ours; nothing is guessed. What should be there and
is not, what no rule knows, and what has another shape is an error that lists all of it.
"""

from __future__ import annotations

import difflib
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.backbones import BACKBONES, build_backbone
from models.segmenter import ImageEncoder
from models.text_encoder import TextEncoder


class CheckpointError(ValueError):
    """A file that is no checkpoint or does not fit the model: one line that names the file, the reason and the fix."""


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

# Modules that a model may lack: the neck, levels of a pixel decoder that ends at stride 8 or 16, BoltzFormer's decoder.
# What a file holds for them is left out knowingly.
OPTIONAL = re.compile(
    r"image_encoder\.backbone\.neck\.lateral\."
    r"|image_encoder\.pixel_decoder\.(?:(?:laterals|outputs)\.\d+|mask_features)\."
    r"|text_encoder\.|decoder\.|pigma\."
)

# The file of a hub repository that is meant where only the repository is named.
HUB_FILES = {
    "facebook/sam2-hiera-tiny": "sam2_hiera_tiny.pt",
    "facebook/sam2-hiera-small": "sam2_hiera_small.pt",
    "facebook/sam2-hiera-base-plus": "sam2_hiera_base_plus.pt",
    "facebook/sam2.1-hiera-tiny": "sam2.1_hiera_tiny.pt",
    "facebook/sam2.1-hiera-small": "sam2.1_hiera_small.pt",
    "facebook/sam2.1-hiera-base-plus": "sam2.1_hiera_base_plus.pt",
    "timm/sam2_hiera_tiny.fb_r896": "model.safetensors",
    "timm/sam2_hiera_small.fb_r896": "model.safetensors",
    "timm/sam2_hiera_base_plus.fb_r896": "model.safetensors",
    "timm/focalnet_large_fl4.ms_in22k": "model.safetensors",
    "xdecoder/X-Decoder": "xdecoder_focall_last.pt",
    "xdecoder/SEEM": "seem_focall_v1.pt",
}
HUB_TIMEOUT = 5.0  # seconds to wait for the hub's first answer


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


def _text_encoder(theirs: str, transformer: str) -> tuple[Rule, ...]:
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
            *_text_encoder(f"{PREDICTOR}language_encoder.", "encoder_transformer"),
            *under(PREDICTOR, "decoder.", DECODER),
            *under("", "pigma.", PIGMA),
        ),
        unused=r"sem_seg_head\.predictor\.(class_embed|language_encoder\.logit_scale)",
    ),
    Kind(
        "X-Decoder / SEEM",
        sign=r"sem_seg_head\.predictor\.lang_encoder\..+",
        fills=SHARED,
        rules=(
            *under("backbone.", "image_encoder.backbone.", FOCAL),
            *under(f"{HEAD}pixel_decoder.", "image_encoder.pixel_decoder.", PIXEL_DECODER),
            *_text_encoder(f"{PREDICTOR}lang_encoder.", "lang_encoder"),
        ),
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


@dataclass(frozen=True)
class LoadReport:
    """What of a checkpoint went where. Our names are those of BoltzFormer, whatever the decoder."""

    file: str
    kind: str
    loaded: tuple[str, ...]  # ours, filled from the file
    missing: tuple[str, ...]  # ours, which the file should fill and does not
    unexpected: tuple[str, ...]  # theirs, which no rule knows
    misshapen: tuple[str, ...]  # ours, each with both shapes
    ignored: tuple[str, ...]  # theirs, known and of no use to this model
    parameters: int  # numbers that were filled
    filled: tuple[str, ...]  # of PARTS, with weights of the file
    random: tuple[str, ...]  # of PARTS, left as they were

    @property
    def problems(self) -> str:
        """All that does not fit in one line, "" where all does."""
        lists = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.misshapen}
        return "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in lists.items() if names)

    def __str__(self) -> str:
        """One line: the file, what it filled, what stays random."""
        text = f"{self.file} ({self.kind}): {len(self.loaded)} tensors, {self.parameters / 1e6:.2f} M parameters, into "
        text += ", ".join(self.filled) or "nothing"
        text += f"; random: {', '.join(self.random)}" if self.random else ""
        return text + (f"; {len(self.ignored)} tensors of the file are not used" if self.ignored else "")


def load_published(model: nn.Module, path: Path, parts: Iterable[str] = tuple(PARTS)) -> LoadReport:
    """Copies the published weights in the file `path` into `model`, as far as `parts` go (names of PARTS).

    The model is BoltzFormer or any decoder with our ImageEncoder and TextEncoder. Values go straight from the mapped
    file into the parameters, in their dtype and on their device. CheckpointError, and an untouched model, where the
    file cannot be read or does not fit.
    """
    state, report = match(model, read_checkpoint(path), path.name, parts)
    model.load_state_dict(state, strict=False)
    return report


def match(
    model: nn.Module, tensors: Mapping[str, Tensor], file: str, parts: Iterable[str] = tuple(PARTS)
) -> tuple[dict[str, Tensor], LoadReport]:
    """Published tensors under the names of `model`, which may be on the meta device, and the report.

    `file` names them in messages. CheckpointError where they are of no known kind, or do not fit: it lists all that is
    missing, unexpected or of another shape.
    """
    kind = _kind_of(tensors, file)
    parts = tuple(parts)
    asked = tuple(PARTS[part] for part in parts)
    due = tuple(PARTS[part] for part in kind.fills if part in parts)
    names = _canonical_names(model)
    here = model.state_dict()
    shapes = {ours: tuple(here[name].shape) for ours, name in names.items()}
    renamed: dict[str, Tensor] = {}
    unexpected, ignored = [], []
    for theirs, tensor in tensors.items():
        pieces = _rename(kind, theirs, tensor)
        # in `renamed` already: two names of the file for one tensor of ours
        if pieces is None or any(
            ours in renamed or (ours.startswith(asked) and not _has_place(ours, names)) for ours in pieces
        ):
            unexpected.append(theirs)
        elif not any(ours.startswith(asked) and ours in names for ours in pieces):
            ignored.append(theirs)
        renamed |= pieces or {}
    state = {ours: tensor for ours, tensor in renamed.items() if ours.startswith(asked) and ours in names}
    misshapen = [ours for ours, tensor in state.items() if tuple(tensor.shape) != shapes[ours]]
    filled = [part for part in parts if any(ours.startswith(PARTS[part]) for ours in state)]
    report = LoadReport(
        file=file,
        kind=kind.title,
        loaded=tuple(ours for ours in state if ours not in misshapen),
        missing=tuple(ours for ours in names if ours.startswith(due) and ours not in state),
        unexpected=tuple(unexpected),
        misshapen=tuple(f"{ours} is {tuple(state[ours].shape)} for {shapes[ours]}" for ours in misshapen),
        ignored=tuple(ignored),
        parameters=sum(tensor.numel() for tensor in state.values()),
        filled=tuple(filled),
        random=tuple(part for part in PARTS if part not in filled and any(n.startswith(PARTS[part]) for n in names)),
    )
    if report.problems:
        raise CheckpointError(_misfit(report, renamed, shapes))
    return {names[ours]: tensor for ours, tensor in state.items()}, report


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The named tensors of a .pt, .pth or .safetensors file, on the CPU and mapped from the file where it allows it.

    A dict under "model" or "state_dict" is taken out, and a prefix "module." of all names. Nothing in the file is
    executed. CheckpointError, which names file and fix, where it is not there, damaged, a pickle of more than tensors,
    or something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file: give the path of a checkpoint (.pt, .pth or .safetensors)")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on odd pickles, which are an error below
                # files in the format before torch 1.6 cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except PermissionError:
        raise CheckpointError(f"{path} may not be read: change its permissions") from None
    except Exception as error:  # the readers raise whatever damaged bytes lead them to
        raise CheckpointError(_unreadable(path, error)) from None
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not _is_state_dict(content):
        raise CheckpointError(f"{path} holds no named tensors: give a state dict, or a dict with one under 'model'")
    if all(name.startswith("module.") for name in content):  # DistributedDataParallel
        content = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return content


def locate(name: str) -> Path:
    """The file of published weights that `name` means: a path, a repository of HUB_FILES, or hf://OWNER/REPO/FILE.

    The latter two are fetched from the Hugging Face hub once. CheckpointError where there is no such file, or the hub
    cannot be reached: it names the file to fetch by hand.
    """
    if Path(name).exists() or not (name in HUB_FILES or name.startswith("hf://")):
        if not Path(name).is_file():
            near = difflib.get_close_matches(name, HUB_FILES, n=1, cutoff=0.8)
            hint = f"did you mean {near[0]}?" if near else "give a path, or hf://OWNER/REPO/FILE"
            raise CheckpointError(f"{name} is neither a file nor known on the hub: {hint}")
        return Path(name).absolute()
    words = name.removeprefix("hf://").split("/", 2)
    repository, file = "/".join(words[:2]), HUB_FILES.get(name) or "".join(words[2:])
    if not file:
        raise CheckpointError(f"{name} names no file: write hf://OWNER/REPO/FILE")
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    url = hf_hub_url(repository, file)
    try:
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT)  # asks once; the download itself would ask for half a minute
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the library's errors and its transport's have no base in common
        raise CheckpointError(
            f"{name} cannot be fetched ({_first_line(error)}): fetch {url} by hand and give the path of the file"
        ) from None


def _kind_of(tensors: Mapping[str, Tensor], file: str) -> Kind:
    for kind in KINDS:
        if any(re.fullmatch(kind.sign, name) for name in tensors):
            return kind
    raise CheckpointError(
        f"{file} is of no known kind (first names: {', '.join(list(tensors)[:3])}): give weights of "
        f"{', '.join(kind.title for kind in KINDS)}"
    )


def _rename(kind: Kind, theirs: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """A published tensor under our names; {} where it is unused, None where no rule knows it."""
    if re.fullmatch(kind.unused, theirs):
        return {}
    for rule in kind.rules:
        if found := re.fullmatch(rule.theirs, theirs):
            ours = (rule.ours,) if isinstance(rule.ours, str) else rule.ours
            pieces = rule.change(tensor).tensor_split(len(ours)) if len(ours) > 1 else (rule.change(tensor),)
            return {found.expand(name): piece for name, piece in zip(ours, pieces, strict=True)}
    return None


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """BoltzFormer's name of each tensor of the model -> the model's own: SAM keeps its text encoder elsewhere."""
    homes = {}
    for name, module in model.named_modules():
        if isinstance(module, ImageEncoder):
            homes[f"{name}."] = "image_encoder."
        elif isinstance(module, TextEncoder):
            homes[f"{name}."] = "text_encoder."
    names = {}
    for own in model.state_dict():
        home = next((home for home in homes if own.startswith(home)), "")
        names[homes.get(home, "") + own.removeprefix(home)] = own
    return names


def _has_place(ours: str, names: Iterable[str]) -> bool:
    """True where `ours` is a tensor of the model, or of an optional module of which the model has nothing."""
    module = OPTIONAL.match(ours)
    return ours in names or (module is not None and not any(name.startswith(module[0]) for name in names))


def _misfit(report: LoadReport, renamed: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    trunk = PARTS["backbone"]
    theirs = {ours: tuple(tensor.shape) for ours, tensor in renamed.items() if ours.startswith(trunk)}
    same = theirs == {ours: shape for ours, shape in shapes.items() if ours.startswith(trunk)}
    if not same and (backbone := _backbone_of(theirs)):
        return (
            f"{report.file} ({report.kind}) holds the backbone {backbone}, and the model has another: "
            f"take a model with {backbone}, or the weights of its own backbone"
        )
    return f"{report.file} ({report.kind}) does not fit the model: {report.problems}"


def _backbone_of(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The backbone whose trunk has exactly these names and shapes."""
    for name in BACKBONES:
        with torch.device("meta"):
            trunk = build_backbone(name).trunk
        if shapes == {PARTS["backbone"] + key: tuple(value.shape) for key, value in trunk.state_dict().items()}:
            return name
    return None


def _is_state_dict(content: object) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, UnpicklingError):
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            return (
                f"{path} holds Python objects ({found[1]}), which can run code when they are loaded: "
                "give a file of tensors only, such as torch.save(model.state_dict(), FILE) writes"
            )
        with path.open("rb") as handle:
            if handle.read(1) == b"\x80":  # how a pickle begins
                return f"{path} is a pickle torch did not write, which can run code when loaded: give another file"
    return f"{path} is damaged or no checkpoint ({_first_line(error)}): fetch it again, or give another file"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _some(names: tuple[str, ...], count: int = 10) -> str:
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")
