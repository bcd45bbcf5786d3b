"""suite.json and splits.json of a suite's folder: the runs of a command, and those of earlier ones beside them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.atomic import read_json, write_json
from bench.execute import run_state
from bench.plan import Plan, Request
from bench.records import SCHEMA_VERSION
from bench.spec import RunSpec
from bench.tuned import with_tuning


def write_suite(plan: Plan, request: Request) -> None:
    """Writes splits.json and suite.json: the runs of this command, and those of earlier ones on the same
    folder.
    """
    from experiments.profiles import BACKBONE_LABELS

    assert plan.splits is not None
    plan.splits.save(plan.folder / "splits.json")
    specs = _with_earlier(plan)
    earlier = _suite(plan.folder)
    labels = earlier.get("methods", {})  # those of rows that were not run here among them
    rows = {spec.row: spec for spec in specs}
    backbones = list(dict.fromkeys(spec.backbone for spec in specs if spec.backbone != "-"))
    value = {
        "schema_version": SCHEMA_VERSION,
        "id": earlier.get("id") or uuid.uuid4().hex[:12],  # tells this folder from others of its name in one MLflow
        "suite": plan.choice.suite.name,
        "title": plan.choice.suite.title,
        "profile": plan.choice.profile.name,
        "split_hash": plan.split_hash,
        "tuned": plan.tuned is not None,
        "command": request.command,
        "earlier_commands": _earlier_commands(plan, {spec.run_id for spec in specs if spec.origin is None}, earlier),
        "phantom": plan.splits.phantom,
        "data": {name: str(Path(root).resolve()) for name, root in plan.splits.roots.items()},
        "backbone_weights": str(plan.weights.path) if plan.weights else None,
        "own_weights": _own_weights(plan, specs, earlier.get("own_weights", {})),
        "runs": [spec.run_id for spec in specs],
        "backbones": {name: BACKBONE_LABELS.get(name, name) for name in backbones},
        "methods": {row: labels[row] if spec.origin else _label(spec) for row, spec in rows.items()},
        "ablations": _ablations(plan, set(rows), earlier.get("ablations", {})),
        "reference": plan.choice.suite.reference,
    }
    write_json(plan.folder / "suite.json", value)


def _suite(folder: Path) -> dict[str, Any]:
    """suite.json as an earlier command has left it; empty where there is none."""
    file = folder / "suite.json"
    return read_json(file, "remove it") if file.exists() else {}


def _earlier_commands(plan: Plan, kept: set[str], earlier: dict[str, Any]) -> list[dict[str, Any]]:
    """The commands without which runs of `kept` would not be there, oldest first, each with those runs.

    A run that several commands ask for is the newest one's.
    """
    older = earlier.get("earlier_commands", [])
    of_older = {run for entry in older for run in entry["runs"]}
    last = {"command": earlier.get("command"), "runs": [run for run in earlier.get("runs", []) if run not in of_older]}
    mine = {spec.run_id for spec in plan.specs}
    left = [entry | {"runs": [run for run in entry["runs"] if run in kept - mine]} for entry in (*older, last)]
    return [entry for entry in left if entry["runs"]]


def _label(spec: RunSpec) -> str:
    from bench.methods import METHODS

    label = METHODS[spec.method].label
    return label if spec.variant is None else f"{label}, {spec.variant.replace('=', ' ')}"


def _own_weights(plan: Plan, specs: Sequence[RunSpec], earlier: dict[str, str]) -> dict[str, str]:
    """Method -> the file of its own weights, of this plan and of the earlier runs among `specs`."""
    paths = earlier | {method: str(found.path) for method, found in plan.own_weights.items()}
    return {spec.method: paths[spec.method] for spec in specs if spec.own_weights and spec.method in paths}


def _ablations(plan: Plan, rows: set[str], earlier: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The plan's ablations and those of earlier commands, of which `rows` are still there."""
    merged = {name: earlier.get(name, {}) | plan.ablations.get(name, {}) for name in {**earlier, **plan.ablations}}
    kept = {name: {value: row for value, row in values.items() if row in rows} for name, values in merged.items()}
    return {name: values for name, values in kept.items() if len(values) > 1}


def _with_earlier(plan: Plan) -> list[RunSpec]:
    """This plan's trials and, in the tables' order, those that an earlier `--methods a,b` left in the folder.

    An earlier run of another recipe, model or budget than the profile has now is left out: one table, one recipe.
    """
    from bench.ablate import variant_now
    from bench.methods import METHODS, make_spec
    from experiments.ablations import ABLATIONS

    def now(spec: RunSpec) -> RunSpec | None:
        if spec.origin is not None:  # a row that was not run here: nothing in it depends on the profile
            return spec
        if spec.method not in METHODS:
            return None
        choice, weights = plan.choice, plan.weights and plan.weights.weights
        given = plan.own_weights.get(spec.method)
        own = given.weights if given else spec.own_weights
        base = make_spec(
            choice.suite, choice.profile, spec.method, spec.backbone, spec.seed, plan.split_hash, weights, own
        )
        if plan.tuned is not None and base.recipe is not None:
            key = (spec.method, spec.backbone)
            return with_tuning(base, plan.tuned[key]) if key in plan.tuned else None
        if spec.variant is None:
            return base
        ablation = ABLATIONS.get(spec.variant.partition("=")[0])
        return ablation and variant_now(spec, ablation, base)

    specs = {(spec.row, spec.backbone, spec.seed): spec for spec in plan.specs}
    for spec in earlier_specs(plan.folder):
        if spec == now(spec):
            specs.setdefault((spec.row, spec.backbone, spec.seed), spec)
    methods, backbones = plan.choice.suite.methods, plan.choice.profile.backbones

    def place(names: Sequence[str], name: str) -> int:
        return names.index(name) if name in names else len(names)

    return sorted(
        specs.values(),
        key=lambda spec: (place(methods, spec.method), place(backbones, spec.backbone), spec.seed),
    )


def leaving(plan: Plan) -> list[str]:
    """The ids of finished runs that `write_suite` leaves out of suite.json, where they are now."""
    if plan.splits is None:  # whether they are of this split is not known yet
        return []
    kept = {spec.run_id for spec in _with_earlier(plan)}
    earlier = [spec for spec in earlier_specs(plan.folder) if spec.run_id not in kept]
    return [spec.run_id for spec in earlier if run_state(plan.folder / spec.run_id)["state"] == "finished"]


def earlier_specs(folder: Path) -> Iterator[RunSpec]:
    """The specs of the runs that suite.json lists, as far as they can be read."""
    for run_id in _suite(folder).get("runs", []):
        try:
            spec = RunSpec.model_validate_json((folder / run_id / "spec.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if spec.run_id == run_id:
            yield spec
