"""Predicts a finished run's test split again, from the weights it left, and compares: `bench verify`."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.atomic import read_json
from bench.data.splits import load_splits
from bench.errors import UserError, unknown_name
from bench.execute import collect, files_left, run_state
from bench.methods import METHODS
from bench.predict_image import load_segmenter, segmenter_spec
from bench.records import ADDED_COLUMNS, READABLE_VERSIONS, RECORD_COLUMNS, SCHEMA_VERSION
from bench.suite_folder import read_spec, read_suite
from bench.terminal import BarLog
from reports.frame import fault, readable

if TYPE_CHECKING:
    from bench.interface import Method
    from bench.spec import RunSpec

KEY = ["dataset", "image_id", "object"]
NOT_COMPARED = "seconds"
MASK = "mask"  # stands for the column `runs` of predictions.parquet


@dataclass(frozen=True)
class Difference:
    """One value that is not the same: where it stands, its column, and both in words."""

    dataset: str
    image_id: str
    object: str
    column: str
    stored: str
    now: str


@dataclass(frozen=True)
class Verified:
    """What came of a run. `changed` are files of its method with other bytes than when it ended, `dice` is the largest
    difference of a mask in points, `rows` counts the test masks and `unequal` those that differ in any column;
    `warnings` say what is not as it was when the run was made.
    """

    run_dir: Path
    rows: int
    unequal: int
    dice: float
    changed: tuple[str, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether everything is as it was."""
        return not self.unequal and not self.changed


def verify_run(run_dir: Path, log: BarLog) -> Verified:
    """Predicts the test split of a finished run again and compares records and masks with the stored ones.

    All columns but seconds are compared, bit for bit. Writes nothing into the suite's folder. Raises UserError where
    the run cannot be verified: it was not made here or is not finished, its weights or data are gone or broken, or
    the data have changed.
    """
    import torch

    from bench.environment import seed_everything

    spec = _spec_of(run_dir)
    if not (run_dir / "predictions.parquet").exists():
        raise UserError(f"{run_dir} has no predicted masks, as in an archive: verify the suite that it was made from")
    stored, masks = _table(run_dir / "records.parquet"), _table(run_dir / "predictions.parquet")
    env = _object(run_dir / "env.json")
    splits = load_splits(run_dir.parent / "splits.json")
    if splits.hash != spec.split_hash:
        raise UserError(
            f"{run_dir} was run on split {spec.split_hash}, {run_dir.parent / 'splits.json'} is {splits.hash}: "
            "restore the splits.json of this run"
        )
    warnings = environment_changes(env)
    if isinstance(threads := env.get("threads"), int) and 0 < threads <= 4096:
        # sums depend on how many threads share them; nnU-Net's processes go by the variable
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    seed_everything(spec.seed)
    with _loaded(spec, run_dir) as method:
        records, predictions = collect(spec, splits, method.predict(splits.test, log))
    then = run_state(run_dir).get("files")
    now = files_left(run_dir)
    changed = sorted(name for name, digest in then.items() if now.get(name) != digest) if isinstance(then, dict) else ()
    return compare(run_dir, stored, masks, records, predictions, tuple(changed), tuple(warnings))


def compare(
    run_dir: Path,
    stored: pd.DataFrame,
    stored_masks: pd.DataFrame,
    records: list[dict[str, Any]],
    predictions: list[dict[str, Any]],
    changed: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
) -> Verified:
    """The stored tables against records and masks made anew, matched by data set, image and object."""
    stored, passed, told = _as_records(stored, run_dir / "records.parquet")
    columns = [name for name in RECORD_COLUMNS if name not in (*KEY, NOT_COMPARED, *passed)]
    now = pd.DataFrame(records).reindex(columns=list(RECORD_COLUMNS)).astype(RECORD_COLUMNS)
    before, after = _by_key(stored, run_dir / "records.parquet"), _by_key(now, run_dir)
    drawn = _by_key(stored_masks, run_dir / "predictions.parquet")
    drawn_now = _by_key(pd.DataFrame(predictions), run_dir)
    differences, unequal, dice = [], 0, 0.0
    for table in (stored, stored_masks):
        again = table.loc[table.duplicated(KEY), KEY].drop_duplicates()
        differences += [Difference(*key, "record", "twice", "once") for key in again.itertuples(index=False)]
        unequal += len(again)
    for key in {**before, **after, **drawn}:
        found = list(_row_differences(key, before.get(key), after.get(key), columns))
        found += _mask_differences(key, drawn.get(key), drawn_now.get(key))
        differences += found
        unequal += bool(found)
        if key in before and key in after and not any(pd.isna(before[key][name]) for name in ("tp", "fp", "fn")):
            dice = max(dice, abs(_dice(before[key]) - _dice(after[key])))
    return Verified(run_dir, len(after), unequal, dice, changed, tuple(differences), (*warnings, *told))


def environment_changes(env: dict[str, Any]) -> list[str]:
    """What is not as env.json says, in words: packages, Python, device. Numbers may differ for them."""
    from bench.environment import package_versions, torch_device

    before = env.get("versions") if isinstance(env.get("versions"), dict) else {}
    here = package_versions()
    pairs = [(name, before[name], here.get(name, "none")) for name in before]
    current = {"python": platform.python_version(), "machine": platform.machine(), "device": torch_device()}
    pairs += [(name, env[name], value) for name, value in current.items() if name in env]
    return [f"{name} {was}, now {value}" for name, was, value in pairs if was != value]


def runs_of(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The run folders of a suite that can be verified, and those that there is nothing to verify in, with the reason.

    A run that failed or was stopped is among the first: `verify_run` says so.
    """
    todo, passed = [], {}
    for run_id in read_suite(folder)["runs"]:
        state = run_state(folder / run_id)
        if state["state"] == "left out":
            passed[run_id] = "was left out of the suite"
        elif state["state"] != "missing" and read_spec(folder / run_id).origin is not None:
            passed[run_id] = "was not run here"
        else:
            todo.append(folder / run_id)
    return todo, passed


def _spec_of(run_dir: Path) -> RunSpec:
    state = run_state(run_dir)["state"]
    if state != "finished":
        raise UserError(f"{run_dir} is {state}: finish it with the `bench run` that began it")
    spec = read_spec(run_dir)
    if spec.origin is not None:
        raise UserError(f"{run_dir} was not run here: verify the runs that were")
    if spec.method not in METHODS:
        raise unknown_name(f"method in {run_dir / 'spec.json'}", spec.method, METHODS)
    return spec


@contextmanager
def _loaded(spec: RunSpec, run_dir: Path) -> Iterator[Method]:
    """The method with what it has learned. One that trains itself gets a folder of links to the run's files, for it
    may write logs and temporary files beside them.
    """
    if METHODS[spec.method].uses_backbone:
        yield load_segmenter(segmenter_spec(run_dir), run_dir)
        return
    if not files_left(run_dir) and not METHODS[spec.method].needs_weights:
        raise UserError(f"{run_dir} has no weights any more: run the suite again")
    method = METHODS[spec.method].build(spec)
    if not hasattr(method, "load"):
        raise UserError(f"{spec.method} cannot load what it has learned: its package has to give it a `load(run_dir)`")
    with tempfile.TemporaryDirectory(prefix="bench-verify-", ignore_cleanup_errors=True) as temporary:
        linked = Path(temporary) / run_dir.name
        for file in (*run_dir.parent.glob("*.json"), *run_dir.rglob("*")):
            if file.is_file() and file.suffix != ".log":
                link = Path(temporary) / file.relative_to(run_dir.parent)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())
        try:
            method.load(linked)
            yield method
        except (UserError, RuntimeError) as error:  # of nnU-Net's processes: broken weights or plans
            reason = str(error).replace(str(linked), str(run_dir))
            raise UserError(
                reason if isinstance(error, UserError) else f"{run_dir} cannot predict ({reason}): run the suite again"
            ) from None


def _table(file: Path) -> pd.DataFrame:
    with readable(file):
        return pd.read_parquet(file)


def _as_records(table: pd.DataFrame, file: Path) -> tuple[pd.DataFrame, set[str], list[str]]:
    """The stored records in the dtypes that this version writes, the columns that an older version had not or wrote
    otherwise, and these in words. UserError where it cannot be read so.
    """
    passed = set(ADDED_COLUMNS) - set(table)
    told = [f"no column {name}" for name in ADDED_COLUMNS if name in passed]
    if lacking := [name for name in RECORD_COLUMNS if name not in table and name not in passed]:
        raise fault(file, f"lacks the columns {', '.join(lacking)}")
    versions = set(table["schema_version"].tolist())
    if versions != {SCHEMA_VERSION} and versions <= set(READABLE_VERSIONS):
        passed.add("schema_version")
        told.append(f"schema_version {', '.join(map(str, sorted(versions)))}, now {SCHEMA_VERSION}")
    try:
        return table.astype({name: kind for name, kind in RECORD_COLUMNS.items() if name in table}), passed, told
    except (ValueError, TypeError) as error:
        raise fault(file, f"has other values than records have ({str(error).splitlines()[0][:100]})") from None


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file, "run the suite again")
    return content if isinstance(content, dict) else {}


def _by_key(table: pd.DataFrame, file: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """The rows by KEY."""
    if lacking := [name for name in KEY if name not in table]:
        raise fault(file, f"lacks the columns {', '.join(lacking)}")
    return {tuple(row[name] for name in KEY): row for row in table.to_dict("records")}


def _row_differences(
    key: tuple[str, ...], before: dict | None, after: dict | None, columns: list[str]
) -> Iterator[Difference]:
    if before is None or after is None:
        yield Difference(*key, "record", "none" if before is None else "there", "none" if after is None else "there")
        return
    for name in columns:
        was, now = before[name], after[name]
        if not (was == now if pd.notna(was) and pd.notna(now) else pd.isna(was) and pd.isna(now)):
            yield Difference(*key, name, str(was), str(now))


def _mask_differences(key: tuple[str, ...], before: dict | None, after: dict | None) -> Iterator[Difference]:
    if before is None or after is None:
        yield Difference(*key, MASK, "none" if before is None else "there", "none" if after is None else "there")
        return
    for name in ("height", "width", "image_file", "mask_file"):
        if before.get(name) != after[name]:
            yield Difference(*key, name, str(before.get(name)), str(after[name]))
    was, now = (np.asarray(row.get("runs", ()), dtype=np.int64) for row in (before, after))
    if not np.array_equal(was, now):
        yield Difference(*key, MASK, f"{was[1::2].sum()} px", f"{now[1::2].sum()} px")


def _dice(row: dict[str, Any]) -> float:
    """Dice of a record in points, 0 where both masks are empty."""
    total = 2 * row["tp"] + row["fp"] + row["fn"]
    return 200 * row["tp"] / total if total else 0.0
