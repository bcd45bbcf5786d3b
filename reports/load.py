"""Reads a suite folder: what was to be run, what came of it, and the records of all finished runs in one
frame."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.atomic import read_json
from bench.errors import UserError
from bench.limits import check_pixels
from bench.records import ADDED_COLUMNS, PHRASINGS_FILE, READABLE_VERSIONS
from bench.spec import Origin, folder_name
from bench.suite_folder import read_spec, read_suite
from reports.frame import COUNTS, VERSIONS, RecordFile, fault, read_records, readable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

RECORDS_FILE = "records.parquet"
PREDICTION_COLUMNS = ("dataset", "object", "image_id", "image_file", "mask_file", "height", "width", "runs")
STATES = ("finished", "failed", "running", "interrupted", "left out")
TO_COME = ("missing", "running", "interrupted")
STATUS_FIELDS = {"error": str | None, "seconds": float | int | None, "fit": dict | None}
RUN_ID = re.compile(r"(?P<name>.+)-seed(?P<seed>\d+)-[0-9a-f]+")


@dataclass(frozen=True)
class Run:
    """One expected run. `state` is one of STATES, or missing (no status.json); `fit` is its FitSummary."""

    run_id: str
    folder: Path
    method: str
    backbone: str
    seed: int
    state: str
    error: str | None = None
    seconds: float | None = None
    fit: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    origin: Origin | None = None  # of a row that was not run here

    @property
    def published(self) -> bool:
        """Whether it is somebody's numbers, without masks."""
        return self.origin is not None and self.origin.kind == "published"


@dataclass(frozen=True)
class SuiteResults:
    """A suite folder in memory. `records` has FRAME_COLUMNS, one row per record of every finished run."""

    folder: Path
    suite: str
    title: str
    profile: str
    split_hash: str
    commands: tuple[str, ...]  # that made its runs, the newest last
    phantom: bool
    data: dict[str, Path]
    methods: dict[str, str]
    backbones: dict[str, str]
    reference: str | None  # the method that the others are compared with
    runs: tuple[Run, ...]
    records: pd.DataFrame
    ablations: dict[str, dict[str, str]] = field(default_factory=dict)  # name -> value shown -> row (RunSpec.row)

    def label(self, method: str, backbone: str) -> str:
        """The row name in the style of the paper's Table 1, "BoltzFormer+Hiera-S"."""
        name = self.methods.get(method, method)
        return name if backbone == "-" else f"{name}+{self.backbones.get(backbone, backbone)}"

    def runs_of(self, method: str, backbone: str) -> list[Run]:
        """The runs of a row, one per seed."""
        return [run for run in self.runs if (run.method, run.backbone) == (method, backbone)]

    def on_common_seeds(self) -> SuiteResults:
        """The suite with the seeds of which no run is still to come, so that all rows have the same ones; with the
        first where there is none such. What was not run here stays.
        """
        elsewhere = {run.method for run in self.runs if run.origin is not None}
        mine = [run for run in self.runs if run.method not in elsewhere]
        seeds = list(dict.fromkeys(run.seed for run in mine))
        waiting = {run.seed for run in mine if run.state in TO_COME}
        kept = [seed for seed in seeds if seed not in waiting] or seeds[:1]
        if len(kept) == len(seeds):
            return self
        runs = tuple(run for run in self.runs if run.seed in kept or run.method in elsewhere)
        inside = self.records["seed"].isin(kept) | self.records["method"].isin(elsewhere)
        return replace(self, runs=runs, records=self.records[inside].reset_index(drop=True))

    def only(self, methods: Collection[str]) -> SuiteResults:
        """The same suite with these methods alone."""
        runs = tuple(run for run in self.runs if run.method in methods)
        records = self.records[self.records["method"].isin(methods)].reset_index(drop=True)
        return replace(self, runs=runs, records=records)


def load_suite(suite_dir: Path) -> SuiteResults:
    """Reads `suite_dir`. Raises UserError for a suite or run that is broken or of another split or schema."""
    suite_dir = Path(suite_dir)
    path = suite_dir / "suite.json"
    if not path.is_file():
        raise UserError(f"{suite_dir} is not a suite folder, it has no suite.json: run `bench run --suite NAME` first")
    suite = read_suite(suite_dir)
    if suite["schema_version"] not in READABLE_VERSIONS:
        raise UserError(
            f"{path} has schema version {suite['schema_version']}, this version reads {VERSIONS}: "
            "move the suite folder away and run the suite again"
        )
    methods, backbones = suite.get("methods", {}), suite.get("backbones", {})
    runs = []
    for run_id in suite["runs"]:
        folder = suite_dir / run_id
        runs.append(_load_run(folder, methods, suite["split_hash"]))
    return SuiteResults(
        folder=suite_dir,
        suite=suite["suite"],
        title=suite["title"],
        profile=suite["profile"],
        split_hash=suite["split_hash"],
        commands=(*(earlier["command"] for earlier in suite.get("earlier_commands", [])), suite["command"]),
        phantom=bool(suite["phantom"]),
        data={name: Path(folder) for name, folder in suite["data"].items()},
        methods=methods,
        backbones=backbones,
        reference=suite.get("reference"),
        runs=tuple(runs),
        records=read_records([_record_file(run, suite["split_hash"]) for run in runs if run.state == "finished"]),
        ablations=suite.get("ablations", {}),
    )


def load_predictions(run: Run, image_ids: Iterable[str]) -> pd.DataFrame:
    """The rows of a run's predictions.parquet for these images; no rows where the run has no such file."""
    path = run.folder / "predictions.parquet"
    if run.state != "finished" or not path.is_file():
        return pd.DataFrame()
    with readable(path):
        table = pd.read_parquet(path, filters=[("image_id", "in", sorted(set(image_ids)))])
    lacking = [name for name in PREDICTION_COLUMNS if name not in table]
    if lacking:
        raise fault(path, f"lacks the columns {', '.join(lacking)}")
    with readable(path):
        for line in table.itertuples():
            check_pixels(line.width, line.height)
            runs = np.asarray(line.runs, dtype=np.int64)
            if (runs < 0).any() or runs.sum() != line.height * line.width:
                raise ValueError(f"the runs of {line.image_id} are not of {line.width} x {line.height} px")
    return table


def load_phrasings(results: SuiteResults) -> pd.DataFrame:
    """The records of the runs that `bench phrasings` has asked, with FRAME_COLUMNS: those of the first phrasings, which
    are in `results.records` too, and those of all others.
    """
    asked = [run for run in results.runs if run.state == "finished" and (run.folder / PHRASINGS_FILE).is_file()]
    names = (RECORDS_FILE, PHRASINGS_FILE)
    return read_records([_record_file(run, results.split_hash, name) for name in names for run in asked])


def _load_run(folder: Path, methods: dict[str, str], split_hash: str) -> Run:
    """Spec, status, environment and curves of one run; a folder that does not exist is a missing run."""
    spec_path, status_path = folder / "spec.json", folder / "status.json"
    origin = None
    if spec_path.is_file():
        spec = read_spec(folder)
        if spec.split_hash != split_hash:
            raise fault(spec_path, f"has split {spec.split_hash}, the suite has {split_hash}")
        method, backbone, seed, origin = spec.row, spec.backbone, spec.seed, spec.origin
    else:
        method, backbone, seed = _parse_run_id(folder.name, methods)
    status = _read_json(status_path) if status_path.is_file() else {"state": "missing"}
    state = status.get("state")
    if status_path.is_file() and (state not in STATES or not spec_path.is_file()):
        what = "stands without spec.json" if state in STATES else f"has the unknown state '{state}'"
        raise fault(status_path, what)
    for name, kinds in STATUS_FIELDS.items():
        if not isinstance(status.get(name), kinds):
            raise fault(status_path, f"has an unusable '{name}'")
    env_path = folder / "env.json"
    return Run(
        run_id=folder.name,
        folder=folder,
        method=method,
        backbone=backbone,
        seed=seed,
        state=state,
        error=status.get("error"),
        seconds=status.get("seconds"),
        fit=status.get("fit") or {},
        env=_read_json(env_path) if env_path.is_file() else {},
        history=_load_history(folder / "history.jsonl"),
        origin=origin,
    )


def _parse_run_id(run_id: str, methods: dict[str, str]) -> tuple[str, str, int]:
    """Method, backbone and seed of a run that left no spec.json, from RunSpec.run_id's form."""
    match = RUN_ID.fullmatch(run_id)
    for method in sorted(methods, key=len, reverse=True) if match else ():
        name = folder_name(method)
        if match["name"] == name:
            return method, "-", int(match["seed"])
        if match["name"].startswith(name + "-"):
            return method, match["name"][len(name) + 1 :], int(match["seed"])
    raise UserError(f"suite.json expects the run '{run_id}', which names none of its methods: run the suite again")


def _record_file(run: Run, split_hash: str, name: str = RECORDS_FILE) -> RecordFile:
    path = run.folder / name
    if not path.is_file():
        raise fault(path, "is missing from a finished run")
    expected = {"split_hash": split_hash, "method": run.method, "backbone": run.backbone, "seed": run.seed}
    return RecordFile(path, expected, ("seconds", *ADDED_COLUMNS, *(COUNTS if run.published else ())))


def _load_history(path: Path) -> pd.DataFrame:
    """The points of the curves. A line cut short by a kill is left out: it costs a point, never a number."""
    if not path.is_file():
        return pd.DataFrame()
    points = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            point = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(point, dict)
            and "step" in point
            and all(isinstance(value, int | float) for value in point.values())
        ):
            points.append(point)
    return pd.DataFrame(points)


def _read_json(path: Path, fix: str | None = None) -> dict[str, Any]:
    """A JSON object; `fix` says what to do where it is none, by default to run again."""
    fix = fix or f"delete {path.parent} and run the suite again"
    content = read_json(path, fix)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: {fix}")
    return content
