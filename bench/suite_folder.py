"""What stands in a suite folder about itself: suite.json, and spec.json of each run.

A folder may come from somebody else. Nothing in it may name a place outside it that would be written to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from bench.atomic import read_json
from bench.errors import UserError
from bench.spec import RunSpec

# of one folder in the suite's: no separator, and not "." or ".."
FolderName = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00-\x1f]+$", max_length=255)]


class EarlierCommand(BaseModel):
    """A command before the one that suite.json was last written by, and the runs that are there by it alone."""

    command: str
    runs: list[FolderName]


class SuiteFile(BaseModel):
    """suite.json as `bench.run` and `bench.external` write it; further fields are passed over."""

    model_config = ConfigDict(extra="allow")

    schema_version: int
    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]*$")] = ""
    suite: str
    title: str
    profile: str
    split_hash: str
    command: str
    earlier_commands: list[EarlierCommand] = []
    phantom: bool
    data: dict[str, str]
    runs: list[FolderName]
    methods: dict[str, str] = {}
    backbones: dict[str, str] = {}
    reference: str | None = None
    ablations: dict[str, dict[str, str]] = {}
    backbone_weights: str | None = None
    own_weights: dict[str, str] = {}


def find_suite(name: str, runs_dir: Path) -> Path:
    """The suite folder that a user means by a name under `runs_dir` or a path; UserError with those that there are."""
    folder = runs_dir / name if (runs_dir / name).is_dir() else Path(name)
    if not (folder / "suite.json").exists():
        known = [path.parent.name for path in sorted(runs_dir.glob("*/suite.json"))]
        have = f"{runs_dir} holds: {', '.join(known)}" if known else f"{runs_dir} holds no runs: start with `bench run`"
        raise UserError(f"no suite.json in {folder}: {have}")
    if any(folder.glob("search-*.json")):
        raise UserError(f"{folder} is a search of `bench tune`, without scores on test: see tuned-*.json in it")
    return folder


def read_suite(folder: Path, fix: str = "run the suite again") -> dict[str, Any]:
    """suite.json of `folder`, its fields as `SuiteFile` says, its runs folders of `folder`.

    UserError naming the file, the field and `fix` where it is missing, broken, or names a run elsewhere.
    """
    file = folder / "suite.json"
    content = read_json(file, fix)
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object: {fix}")
    try:
        SuiteFile.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{file} {first_fault(error)}: {fix}") from None
    home = folder.resolve()
    for name in content["runs"]:
        if (home / name).resolve().parent != home:
            raise UserError(f"{file} has the run {name!r}, which lies outside {folder}: {fix}")
    return content


def read_spec(run_dir: Path) -> RunSpec:
    """spec.json of a run. UserError where it is missing, broken, or of another version."""
    file = run_dir / "spec.json"
    fix = f"delete {run_dir} and run the suite again"
    try:
        return RunSpec.model_validate(read_json(file, fix))
    except ValidationError as error:
        raise UserError(f"{file} is not a run's spec: it {first_fault(error)}: {fix}") from None


def first_fault(error: ValidationError) -> str:
    """What pydantic complains of first, in a few words."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"has no '{where}'"
    return f"has an unusable {where or 'content'} ({first['msg']})"
