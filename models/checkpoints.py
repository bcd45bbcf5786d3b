"""Published weights into our modules, strictly: each name of a file has a rule here or is listed as unused.

A rule is a regular expression for a published name and the name of ours; nothing is guessed. What should be there and
is not, what no rule knows, and what has another shape is an error that lists all of it.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from models.backbones import BACKBONES, build_backbone
from models.published_names import KINDS, PARTS, Kind
from models.segmenter import ImageEncoder
from models.text_encoder import TextEncoder


class CheckpointError(ValueError):
    """A file that is no checkpoint or does not fit the model: one line that names the file, the reason and the fix."""


# Modules that a model may lack: the neck, levels of a pixel decoder that ends at stride 8 or 16, BoltzFormer's decoder.
# What a file holds for them is left out knowingly.
OPTIONAL = re.compile(
    r"image_encoder\.backbone\.neck\.lateral\."
    r"|image_encoder\.pixel_decoder\.(?:(?:laterals|outputs)\.\d+|mask_features)\."
    r"|image_encoder\.pixel_decoder\."
    r"|text_encoder\.|decoder\.|pigma\."
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


def load_published(
    model: nn.Module, path: Path, parts: Iterable[str] = tuple(PARTS), kind: Kind | None = None
) -> LoadReport:
    """Copies the published weights in the file `path` into `model`, as far as `parts` go (names of PARTS).

    The model is BoltzFormer or any decoder with our ImageEncoder and TextEncoder. `kind` is the file's, None looks for
    it among KINDS. Values go straight from the mapped file into the parameters, in their dtype and on their device.
    CheckpointError, and an untouched model, where the file cannot be read or does not fit.
    """
    state, report = match(model, read_checkpoint(path), path.name, parts, kind)
    model.load_state_dict(state, strict=False)
    return report


def match(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    file: str,
    parts: Iterable[str] = tuple(PARTS),
    kind: Kind | None = None,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Published tensors under the names of `model`, which may be on the meta device, and the report.

    `file` names them in messages. CheckpointError where they are of no known kind (`kind` None), or do not fit: it
    lists all that is missing, unexpected or of another shape.
    """
    kind = kind or _kind_of(tensors, file)
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
            check_archive(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on odd pickles, which are an error below
                # files in the format before torch 1.6 cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except CheckpointError:
        raise
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


def check_archive(path: Path) -> None:
    """CheckpointError for a ZIP archive (.pt since torch 1.6) that would unpack to more than its own size.

    torch stores tensors as they are: an archive that packs them, or has several point to the same bytes, is no
    checkpoint but a way to fill the memory. A file that is no archive is passed over.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        raise CheckpointError(f"{path} is packed, as torch packs no file: give another")


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
    return f"{path} is damaged or no checkpoint ({first_line(error)}): fetch it again, or give another file"


def first_line(error: Exception) -> str:
    """The first 120 characters of what an exception says, its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _some(names: tuple[str, ...], count: int = 10) -> str:
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")
