"""From an ablation to runs: one spec per value, everything else as the profile has it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from bench.errors import UserError
from bench.spec import Ablation, RunSpec

MULTIPLE = 32  # px: what every backbone's image size is a multiple of
LARGEST = 16.0  # times the profile's image size; more is meant as pixels


def variants(ablation: Ablation, base: RunSpec, texts: Sequence[str] | None = None) -> dict[str, RunSpec]:
    """What a table shows for a value -> the spec of its run, in order.

    The value that the profile has anyway is `base` itself, so that all ablations share its run; it is among them
    always, for the others are compared with it. `texts`, of the command line, replace the ablation's own values.
    UserError for a value that the field cannot have.
    """
    part, name = ablation.field.split(".")
    holder = getattr(base, part)
    values = ablation.values if texts is None else {text: _parse(ablation, holder, name, text) for text in texts}
    own = 1.0 if ablation.share else getattr(holder, name)
    if own not in values.values():
        values = values | {next((label for label, value in ablation.values.items() if value == own), str(own)): own}
    specs = {}
    for label, value in values.items():
        if ablation.share:
            value = max(MULTIPLE, round(value * getattr(holder, name) / MULTIPLE) * MULTIPLE)
            label = f"{value} px"
        changed = holder.model_copy(update={name: value})
        if changed == holder:
            specs[label] = base
        else:
            specs[label] = base.model_copy(update={part: changed, "variant": f"{ablation.name}={label}"})
    return specs


def variant_now(spec: RunSpec, ablation: Ablation, base: RunSpec) -> RunSpec | None:
    """What the variant of an earlier `spec` is today, None where there is no such value any more."""
    label = spec.variant.partition("=")[2]
    texts = None if label in ablation.values or ablation.share else [label]
    try:
        return variants(ablation, base, texts).get(label)
    except UserError:
        return None


def _parse(ablation: Ablation, holder, name: str, text: str):
    """A value as it is written on the command line: a name of the ablation's, a number, a percentage."""
    if text in ablation.values:
        return ablation.values[text]
    known = f"the paper's and ours are {', '.join(ablation.values)}"
    try:
        if ablation.share or (text.endswith("%") and _is_share(holder, name)):
            value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        else:
            value = TypeAdapter(type(holder).model_fields[name].annotation).validate_python(text)
    except (ValidationError, ValueError):
        raise UserError(f"--values: {ablation.name} cannot be {text!r}: {known}") from None
    if not isinstance(value, bool | str) and not value > 0:
        raise UserError(f"--values: {ablation.name} must be above 0, not {text}: {known}")
    if ablation.share:
        if value > LARGEST:
            own = getattr(holder, name)
            raise UserError(f"--values: {ablation.name} is a multiple of the profile's {own}, such as 1.5, not {text}")
        return value
    try:
        type(holder).model_validate(holder.model_dump() | {name: value})
    except ValidationError as error:
        raise UserError(f"--values: {ablation.name} cannot be {text} ({error.errors()[0]['msg']}): {known}") from None
    return value


def _is_share(holder, name: str) -> bool:
    return isinstance(getattr(holder, name), float)
