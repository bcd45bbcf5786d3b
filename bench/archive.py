"""A suite's folder without what is large or of this machine: what its report needs, to keep in a repository."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.atomic import read_json, write_json
from bench.data.storage import is_url
from bench.errors import UserError
from bench.execute import run_state
from bench.records import PHRASINGS_FILE
from bench.suite_folder import read_suite

SMALL_FILES = (
    "spec.json",
    "status.json",
    "env.json",
    "history.jsonl",
    "records.parquet",
    PHRASINGS_FILE,
    "sampling.npz",
)
MASKS_FILE = "predictions.parquet"
NOT_ARCHIVED = ("lock", "cache", "*/lock", "*/resume-*", "*/model.pt")  # by which a suite that is worked on is known


@dataclass(frozen=True)
class Archive:
    """What `archive_suite` wrote: `finished` of `runs` runs, in `size` bytes."""

    folder: Path
    runs: int
    finished: int
    size: int


def archive_suite(suite_dir: Path, out: Path, masks: bool = False) -> Archive:
    """Copies to `out` what a report of `suite_dir` needs, in place of an older archive of the same runs.

    Weights, checkpoints, logs and caches stay behind, and the predicted masks unless `masks`. Paths of data and weights
    are cut to their last part, in the command too. The copy is a suite folder: `build_report` opens it, and under a
    runs folder `bench run` goes on with it. `out` is replaced in one step, or left as it was.

    Raises UserError for a broken suite, and for an `out` that is no archive or that holds finished runs which
    `suite_dir` lacks.
    """
    from reports.load import load_suite

    results = load_suite(suite_dir)
    home, out = suite_dir.resolve(), out.resolve()
    if out == home or home in out.parents or out in home.parents:
        raise UserError(f"{out} and {suite_dir} lie one within the other: name another folder for the archive")
    _take_back(out)
    if out.exists():
        _check_older(out, suite_dir, {run.run_id for run in results.runs if run.state == "finished"})
    fresh = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        _copy(home, fresh, [run.run_id for run in results.runs], (*SMALL_FILES, *([MASKS_FILE] if masks else [])))
        load_suite(fresh)  # what was written can be read
        _put_in_place(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Archive(out, len(results.runs), sum(run.state == "finished" for run in results.runs), size)


def _check_older(out: Path, suite_dir: Path, finished: set[str]) -> None:
    """UserError where replacing `out` would lose what is not in `suite_dir`."""
    if not (out / "suite.json").is_file():
        if out.is_dir() and not any(out.iterdir()):
            return
        raise UserError(f"{out} is there and is no archive (it has no suite.json): name another folder")
    older = read_suite(out, "name another folder")
    if any(file for name in NOT_ARCHIVED for file in out.glob(name)):
        raise UserError(f"{out} is a suite's own folder, with what no archive has: name another folder")
    kept = [run_id for run_id in older["runs"] if run_state(out / run_id)["state"] == "finished"]
    lost = sorted(set(kept) - finished)
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise UserError(
            f"{out} holds finished runs that {suite_dir} lacks ({lost[0]}{more}): name another folder, or copy "
            "those runs to the suite's folder first"
        )


def _copy(home: Path, fresh: Path, runs: list[str], names: tuple[str, ...]) -> None:
    fresh.mkdir(parents=True)
    suite = read_suite(home)
    suite.pop("id", None)  # whoever goes on with the archive has runs in MLflow of their own
    suite["data"] = {name: Path(folder).name for name, folder in suite["data"].items()}
    suite["backbone_weights"] = _last_part(suite.get("backbone_weights"))
    for entry in (suite, *suite.get("earlier_commands", [])):
        entry["command"] = _without_folders(entry["command"])
    suite["own_weights"] = {name: Path(file).name for name, file in suite.get("own_weights", {}).items()}
    write_json(fresh / "suite.json", suite)
    if (home / "splits.json").is_file():
        splits = read_json(home / "splits.json", "run the suite again")
        for dataset in splits["datasets"].values():
            dataset["root"] = Path(dataset["root"]).name
        write_json(fresh / "splits.json", splits)
    for run_id in runs:
        for name in names:
            if (home / run_id / name).is_file():
                (fresh / run_id).mkdir(exist_ok=True)
                shutil.copyfile(home / run_id / name, fresh / run_id / name)


def _without_folders(command: str) -> str:
    """The command with the last part of what it names on this machine, and without its runs folder."""
    words = shlex.split(command)
    if "--runs-dir" in words:
        place = words.index("--runs-dir")
        del words[place : place + 2]
    for place, word in enumerate(words):
        name, equals, path = word.rpartition("=")  # METHOD=FILE
        if Path(path).is_absolute() or (words[place - 1] == "--data" and not is_url(word)):
            words[place] = name + equals + Path(path).name
    return shlex.join(words)


def _last_part(path: str | None) -> str | None:
    return None if path is None else Path(path).name


def _take_back(out: Path) -> None:
    """Brings back an archive that was put aside by a process that did not live to put the new one in its place."""
    aside = sorted(out.parent.glob(f".{out.name}.*.old"))
    if aside and not out.exists():
        aside[-1].rename(out)


def _put_in_place(fresh: Path, out: Path) -> None:
    """Renames `fresh` to `out`; an older `out` is removed when the new one stands."""
    older = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(older)
    try:
        fresh.rename(out)
    except OSError:
        if older.exists():
            older.rename(out)
        raise
    shutil.rmtree(older, ignore_errors=True)
