"""Methods that other installed packages offer, by entry points of the group `boltzbench.methods`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import entry_points

from bench.errors import UserError
from bench.interface import MethodEntry

GROUP = "boltzbench.methods"


def installed_methods(own: Mapping[str, MethodEntry]) -> dict[str, MethodEntry]:
    """The entries by name, each with its package; `own` are the names that are taken.

    Raises UserError naming the package for a name that is taken or no plain word, for an entry that cannot be imported,
    and for one that is no MethodEntry.
    """
    found: dict[str, MethodEntry] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        what = f"the package {point.dist.name} offers the method '{point.name}' ({point.value})"
        fix = f"mend the package or uninstall it (pip uninstall {point.dist.name})"
        if not re.fullmatch(r"[a-z0-9_]+", point.name):
            raise UserError(f"{what}, a name that has more than a-z, 0-9 and _: {fix}")
        if point.name in own or point.name in found:
            owner = found[point.name].package if point.name in found else "boltzbench"
            raise UserError(f"{what}, a name that {owner} has given already: {fix}")
        try:
            entry = point.load()
        except Exception as error:
            raise UserError(f"{what}, which cannot be imported ({type(error).__name__}: {error}): {fix}") from error
        if not isinstance(entry, MethodEntry):
            raise UserError(f"{what}, which is a {type(entry).__name__}, not a bench.interface.MethodEntry: {fix}")
        found[point.name] = replace(entry, package=f"{point.dist.name} {point.dist.version}")
    return found
