"""Rows that no run here made, written as runs of a suite folder: published results, and masks of another tool."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.atomic import write_json
from bench.errors import UserError
from bench.methods import METHODS
from bench.records import RECORD_COLUMNS, SCHEMA_VERSION, write_table
from bench.spec import Origin, RunSpec, sha256_of
from bench.suite_folder import read_spec, read_suite

if TYPE_CHECKING:
    import pandas as pd


def suite_folder(name: str, runs_dir: Path) -> Path:
    """The folder that a user means by `name`: one of `runs_dir`, or a path."""
    return Path(name) if not (runs_dir / name).is_dir() and len(Path(name).parts) > 1 else runs_dir / name


def new_suite(name: str, title: str, command: str, split_hash: str, data: dict[str, Path], phantom: bool) -> dict:
    """suite.json of a folder that holds no runs but such rows."""
    return {
        "schema_version": SCHEMA_VERSION,
        "suite": name,
        "title": title,
        "profile": "-",
        "split_hash": split_hash,
        "command": command,
        "phantom": phantom,
        "data": {name: str(folder.resolve()) for name, folder in data.items()},
        "runs": [],
        "backbones": {},
        "methods": {},
        "reference": None,
    }


def same_suite(folder: Path, new: dict) -> dict:
    """suite.json of `folder`, `new` where it has none; UserError where it is of another suite or split."""
    file = folder / "suite.json"
    if not file.exists():
        return new
    fix = f"name another folder with --into, or remove {folder}"
    there = read_suite(folder, fix)
    for field in ("suite", "split_hash"):
        if there.get(field) != new[field]:
            raise UserError(f"{file} has {field} {there.get(field)!r}, these rows {new[field]!r}: {fix}")
    return there


def files_hash(folder: Path, files: Iterable[Path]) -> str:
    """The SHA-256 over names (below `folder`) and contents of files, in hex."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def method_name(label: str) -> str:
    """The label in small letters and underscores: what a row's run is called.

    UserError where the label has no letter or digit, or is that of a method that can be run here.
    """
    method = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
    if not method:
        raise UserError(f"--as {label!r} has no letter or digit: name the row as it should stand in the tables")
    if method in METHODS or label in {entry.label for entry in METHODS.values()}:
        raise UserError(f"--as {label!r} is a method of this program: choose another name, such as '{label}, mine'")
    return method


def row_spec(label: str, origin: Origin, suite: dict[str, Any]) -> RunSpec:
    """The spec of a row in a suite; raises as `method_name`."""
    return RunSpec(
        suite=suite["suite"],
        profile=suite["profile"],
        method=method_name(label),
        backbone="-",
        seed=0,
        split_hash=suite["split_hash"],
        origin=origin,
    )


def write_row(
    folder: Path,
    spec: RunSpec,
    records: pd.DataFrame | Sequence[dict],
    predictions: Sequence[dict] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes a row as a finished run of the suite folder: status last. `notes` become its footnotes."""
    run_dir = folder / spec.run_id
    write_json(run_dir / "spec.json", spec.model_dump(mode="json"))
    if predictions is not None:
        write_table(predictions, run_dir / "predictions.parquet")
    write_table(records, run_dir / "records.parquet", RECORD_COLUMNS)
    status = {"state": "finished", "error": None, "spec_hash": spec.hash, "fit": {"notes": list(notes)}}
    write_json(run_dir / "status.json", status)


def list_rows(folder: Path, suite: dict[str, Any], rows: dict[str, RunSpec]) -> None:
    """Enters rows (label -> spec), written before, into suite.json; an earlier row of the same name goes."""
    methods = {spec.method for spec in rows.values()}
    kept = [run_id for run_id in suite["runs"] if not _is_one_of(folder / run_id, methods)]
    labels = suite.get("methods", {}) | {spec.method: label for label, spec in rows.items()}
    runs = kept + [spec.run_id for spec in rows.values()]
    write_json(folder / "suite.json", suite | {"schema_version": SCHEMA_VERSION, "runs": runs, "methods": labels})


def _is_one_of(run_dir: Path, methods: set[str]) -> bool:
    return (run_dir / "spec.json").exists() and read_spec(run_dir).method in methods
