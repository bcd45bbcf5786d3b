"""Published weights of a run: found and tried before anything trains, and found again by the trial that loads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.atomic import read_json
from bench.errors import UserError, unknown_name
from bench.spec import RunSpec, Weights, sha256_of

if TYPE_CHECKING:
    from bench.plan import Choice

NO_SPLIT = "-" * 10  # in a spec that only serves to build a model


@dataclass(frozen=True)
class WeightsFile:
    """Published weights that were found to fit: what a spec keeps of them, where they are, what they do in words."""

    weights: Weights
    path: Path
    summary: str


def find_weights(name: str, choice: Choice) -> WeightsFile:
    """The published weights `name` (a file, or a name on the hub), tried on every decoder and backbone of the choice.

    The decoders are built without storage, so that this takes seconds. UserError where they are not to be had, cannot
    be read, or do not fit.
    """
    import torch

    from bench.methods import METHODS, make_spec
    from models.checkpoints import CheckpointError, match, read_checkpoint
    from models.hub import locate
    from models.published_names import SHARED

    methods = [method for method in choice.methods if METHODS[method].uses_backbone]
    if not methods:
        raise UserError(f"--backbone-weights: {', '.join(choice.methods)} would not use it: leave it out")
    try:
        path = locate(name)
        tensors = read_checkpoint(path)
    except CheckpointError as error:
        raise UserError(f"--backbone-weights: {error}") from None
    reports, misfits = [], []
    for backbone in choice.backbones:
        try:
            for method in methods:
                spec = make_spec(choice.suite, choice.profile, method, backbone, 0, NO_SPLIT)
                with torch.device("meta"):
                    model = METHODS[method].build(spec).build()
                reports.append(match(model, tensors, path.name, SHARED)[1])
        except CheckpointError as error:
            misfits.append(f"for {backbone} at profile {choice.profile.name}, {error}")
    if misfits:
        raise UserError(f"--backbone-weights: {'; '.join(misfits)} (--backbones and --profile choose the model)")
    fullest = max(reports, key=lambda report: report.parameters)  # not every decoder reads the finest features
    weights = Weights(file=path.name, sha256=sha256_of(path), parts=fullest.filled)
    return WeightsFile(weights, path, str(fullest))


def find_own_weights(asked: Sequence[str], choice: Choice) -> dict[str, WeightsFile]:
    """Method -> its own published weights, from words METHOD=FILE or METHOD=NAME (on the hub), each tried.

    UserError where a word is none, the method is not of the choice or has no weights of its own, or the file is not to
    be had, cannot be read, or does not fit.
    """
    if not asked:
        return {}  # without torch, which the driver of a Ray run does not need
    from bench.methods import METHODS, make_spec
    from models.checkpoints import CheckpointError
    from models.hub import locate

    found: dict[str, WeightsFile] = {}
    for word in asked:
        method, equals, name = word.partition("=")
        if not (method and equals and name):
            raise UserError(f"--weights {word!r}: write METHOD=FILE, such as --weights biomedparse=biomedparse_v1.pt")
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
        loads = METHODS[method].loads
        if loads is None:
            able = ", ".join(other for other, entry in METHODS.items() if entry.loads is not None)
            raise UserError(
                f"--weights {word}: {method} has no published weights of its own (those that have: {able}); "
                "--backbone-weights gives the decoders what they share"
            )
        if method not in choice.methods:
            raise UserError(f"--weights {word}: {method} is not run here: add it to --methods, or leave --weights out")
        if len([other for other in asked if other.startswith(f"{method}=")]) > 1:
            raise UserError(f"--weights {word}: {method} is given twice: give one file for each method")
        try:
            path = locate(name)
            backbone = choice.backbones[0] if METHODS[method].uses_backbone else "-"
            report = loads(make_spec(choice.suite, choice.profile, method, backbone, 0, NO_SPLIT), path)
        except CheckpointError as error:
            raise UserError(f"--weights {method}: {error}") from None
        found[method] = WeightsFile(
            Weights(file=path.name, sha256=sha256_of(path), parts=report.filled), path, str(report)
        )
    return found


def own_weights_path(spec: RunSpec, suite_dir: Path) -> Path:
    """Where the method's own weights of a run are, as suite.json says; raises as `same_file`."""
    content = read_json(suite_dir / "suite.json", "run `bench run` again")
    paths = content.get("own_weights") if isinstance(content, dict) else None
    if not isinstance(paths, dict) or not isinstance(paths.get(spec.method), str):
        raise UserError(f"{suite_dir / 'suite.json'} names no weights of {spec.method}: run the suite again with them")
    return same_file(Path(paths[spec.method]), spec.own_weights, f"--weights {spec.method}=FILE")


def same_file(path: Path, weights: Weights, option: str) -> Path:
    """`path`; UserError where it is gone, or is not the file that `weights` stand for."""
    if not path.is_file():
        raise UserError(f"{path} is gone: give the weights again with {option}")
    if sha256_of(path) != weights.sha256:
        raise UserError(f"{path} has changed since this run was planned: run the same command again")
    return path
