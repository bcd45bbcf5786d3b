"""A run folder into MLflow: the folder is the truth, and what MLflow has missed of it is sent once more.

While a trial runs its points are sent as they come. They may not arrive: MLflow is away, or the trial is killed before
it has sent the last seconds. So the points of history.jsonl are compared with MLflow's own when a trial ends, and by
the driver for runs that ended without MLflow: nothing is lost and no point is there twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.atomic import read_json, write_json
from bench.limits import load_json
from bench.runlog import read_history
from bench.spec import RunSpec, Weights, flatten
from bench.urls import masked

if TYPE_CHECKING:
    import pandas as pd

    from bench.tracking import Tracker

LEFT = ("model.pt", "location_prior.npz", "nnunet")  # what methods keep for `predict`, files and folders
FRESH = "fresh"  # in status.json: MLflow has nothing of this run yet, whatever it has of an earlier one
IN_MLFLOW, IN_STORE = "in_mlflow", "in_store"  # in status.json: the MLflow run that has all of this run, and where
MLFLOW_NAME = re.compile(r"[^\w. -]")  # what may not be in a metric's name


def tracker_of(spec: RunSpec, suite_dir: Path, uri: str | None, parent: str | None, fresh: bool) -> Tracker | None:
    """The MLflow run of a trial, found or made; None where there is no `uri`. `fresh`: nothing of it is on disk."""
    if uri is None:
        return None
    from bench import environment
    from bench.tracking import Tracker

    git = environment.git_state()
    tags = {
        "split_hash": spec.split_hash,
        "suite": spec.suite,
        "profile": spec.profile,
        "method": spec.row,
    }
    tags |= {f"version.{name}": version for name, version in environment.package_versions().items()}
    tags |= {"git_commit": git["commit"], "git_dirty": str(git["dirty"])} if git else {}
    tags |= starting_weights(spec)
    suite = read_json(suite_dir / "suite.json", "run `bench run` again")
    tags["data"] = "phantom" if suite.get("phantom") else ", ".join(suite.get("data", {}))
    key = f"{spec.hash} {suite_dir.name} {suite.get('id', '')}".rstrip()
    return Tracker(uri, key, spec.run_id, tags, flatten(spec.model_dump(mode="json")), parent, fresh)


def publish(run_dir: Path, tracker: Tracker) -> bool:
    """Sends what MLflow lacks of a run that has ended, and ends it there; whether all of it has arrived.

    Then status.json says so, and names the MLflow run.
    """
    status = load_json(run_dir / "status.json")
    tracker.begin_again()
    if tracker.open() and status.pop(FRESH, False):
        write_json(run_dir / "status.json", status)
    names = ("spec.json", "env.json", "status.json", "error.txt")
    points = list(_curve(run_dir, status))
    if status["state"] == "finished":
        fit = status["fit"]
        names = (*names, "records.parquet", *LEFT)
        tracker.tag(budget=fit["budget"], parameters=str(fit["parameters"]))
        values = {"train_seconds": fit["train_seconds"]}
        if (run_dir / "records.parquet").exists():  # `bench tune` leaves none
            values |= _test_metrics(run_dir / "records.parquet")
        points.append((0, _seconds(status["ended"]), values))
    tracker.artifacts(*(run_dir / name for name in names))  # those that there are
    tracker.catch_up(points)
    tracker.finish({"finished": "FINISHED", "failed": "FAILED"}.get(status["state"], "KILLED"))
    if not tracker.failed:
        write_json(run_dir / "status.json", status | {IN_MLFLOW: tracker.run_id, IN_STORE: _store(tracker.uri)})
    return not tracker.failed


def publish_rest(suite_dir: Path, specs: Iterable[RunSpec], uri: str, parent: str | None) -> None:
    """Sends the runs that have ended and that this MLflow has not, or not whole; stops at the first that does not
    arrive.
    """
    for spec in specs:
        run_dir = suite_dir / spec.run_id
        try:
            status = load_json(run_dir / "status.json")
        except (OSError, ValueError):
            continue
        if status.get("state") not in ("finished", "failed", "interrupted") or "ended" not in status:
            continue
        if status["state"] == "finished" and "fit" not in status:
            continue
        if IN_MLFLOW in status and status.get(IN_STORE, _store(uri)) == _store(uri):
            continue
        tracker = tracker_of(spec, suite_dir, uri, parent, fresh=bool(status.get(FRESH)))
        if tracker is None or not publish(run_dir, tracker):
            return


def _curve(run_dir: Path, status: dict[str, Any]) -> Iterator[tuple[int, float, dict[str, float]]]:
    """(step, Unix seconds, values) of each line of history.jsonl that can be read. The times of a run that was taken up
    several times are those of one that was not.
    """
    rows = []
    for _, row in read_history(run_dir / "history.jsonl"):
        try:
            values = {name: float(v) for name, v in row.items() if name not in ("step", "time") and v is not None}
            rows.append((row["step"], float(row["time"]), values))
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    end = _seconds(status["ended"]) if "ended" in status else 0.0
    last = max((time for _, time, _ in rows), default=0.0)
    for step, time, values in rows:
        yield step, end - last + time, values


def starting_weights(spec: RunSpec) -> dict[str, str]:
    """What a run starts from, for env.json and the tags: files and their hashes, or "random"."""

    def named(weights: Weights | None) -> str:
        return f"{weights.file} sha256:{weights.sha256[:12]}" if weights else "random"

    own = {"own_weights": named(spec.own_weights)} if spec.own_weights else {}
    if spec.recipe is None:
        return own
    text = spec.weights if spec.weights and "text_encoder" in spec.weights.parts else None
    return own | {"backbone_weights": named(spec.weights), "text_weights": named(text)}


def _test_metrics(records: Path) -> dict[str, float]:
    """Mean Dice in 0..1 for MLflow's charts: test_dice over all records, dice/<data set>, dice/small/<data set> and
    dice/large/<data set>. The tables weigh by data set.
    """
    import pandas as pd

    from reports.aggregate import dice_percent
    from reports.strata import LARGE, SMALL, area_percent, members

    frame: pd.DataFrame = pd.read_parquet(records)
    dice = pd.Series(dice_percent(frame["tp"], frame["fp"], frame["fn"]) / 100)
    inside = members(area_percent(frame["area_px"], frame["height"], frame["width"]), (SMALL, LARGE))
    found = {"test_dice": dice.mean()}
    for prefix, chosen in (("dice", inside.any(axis=1)), ("dice/small", inside[:, 0]), ("dice/large", inside[:, 1])):
        means = dice[chosen].groupby(frame["dataset"][chosen]).mean()
        for dataset, mean in means.items():
            found[f"{prefix}/{MLFLOW_NAME.sub('_', dataset)}"] = mean
    return {name: float(value) for name, value in found.items() if value == value}


def _store(uri: str) -> str:
    """A store's name for status.json, which may go anywhere: neither its password nor its path."""
    return hashlib.sha256(masked(uri).encode()).hexdigest()[:12]


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()
