"""`--set FIELD=VALUE`: a profile with some of its fields changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.errors import UserError, unknown_name
from bench.spec import Profile
from bench.suite_folder import first_fault

GROUPS = ("recipe", "model", "nnunet", "phantom")  # fields of Profile that have fields of their own
OWN = ("cpus_per_trial", "gpus_per_trial", "memory_gib_per_trial", "workers_per_trial", "micro_batch")
OWN += ("cpus_per_expert", "gpus_per_expert")


def with_overrides(profile: Profile, texts: Sequence[str]) -> Profile:
    """`profile` with what `texts` say ("steps=900", "nnunet.epochs=20", "cpus_per_trial=2"); its title names them.

    A name without a dot is a field of the recipe, or one of OWN. Values are JSON, or else plain text. Raises UserError
    for an unknown field (did you mean), for a value that does not fit it, and for a field given twice.
    """
    content = profile.model_dump()
    seen: set[str] = set()
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise UserError(f"--set {text!r}: write FIELD=VALUE, such as --set steps=900")
        group, field = _place(name, profile)
        if f"{group}.{field}" in seen:
            raise UserError(f"--set {text}: {name} is given twice")
        seen.add(f"{group}.{field}")
        (content[group] if group else content)[field] = _value(value)
        try:
            Profile.model_validate(content)
        except ValidationError as error:
            raise UserError(f"--set {text}: the profile {first_fault(error)}") from None
    if texts:
        content["title"] += f"; {', '.join(texts)}"
    return Profile.model_validate(content)


def _place(name: str, profile: Profile) -> tuple[str, str]:
    """The group of a field, "" for the profile's own, and its name there."""
    group, dot, field = name.rpartition(".")
    if not dot:
        group = "" if name in OWN else "recipe"
    elif group not in GROUPS:
        raise unknown_name("group of --set", group, GROUPS)
    part: BaseModel = getattr(profile, group) if group else profile
    known = OWN if not group else list(type(part).model_fields)
    if field not in known:
        raise unknown_name("field of --set", name, [*known, *OWN] if not dot else [f"{group}.{one}" for one in known])
    return group, field


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
