"""One RunSpec from start to records: resume policy, fit, predict, check, write, status last."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.atomic import write_json, write_text
from bench.checkpoint import forget_checkpoints
from bench.errors import UserError, comes_from_outside, full_disk
from bench.interface import Method, Prediction, Sample, Spread
from bench.limits import load_json
from bench.locks import alone_in
from bench.publish import FRESH, LEFT, publish, starting_weights, tracker_of
from bench.records import (
    ADDED_COLUMNS,
    PHRASINGS_FILE,
    READABLE_VERSIONS,
    RECORD_COLUMNS,
    SCHEMA_VERSION,
    encode_mask,
    write_table,
)
from bench.runlog import RunLog
from bench.spec import RunSpec, sha256_of

if TYPE_CHECKING:
    import numpy as np

    from bench.data.splits import Splits
    from bench.tracking import Tracker

DYING = 5.0  # seconds for a process that was killed to be gone
# (spec, suite folder, run folder, tracker, spread, micro_batch) -> the FitSummary as a dict
Work = Callable[[RunSpec, Path, Path, "Tracker | None", Spread | None, int | None], dict[str, Any]]


def run_state(run_dir: Path) -> dict[str, Any]:
    """What status.json says, {"state": "missing"} where there is none or a broken one."""
    try:
        status = load_json(run_dir / "status.json")
    except (OSError, ValueError):
        return {"state": "missing"}
    return status if isinstance(status, dict) and "state" in status else {"state": "missing"}


def is_finished(spec: RunSpec, run_dir: Path) -> bool:
    """True where this very spec ended well and its records can be read: such a trial is not run again.

    The predicted masks may be absent (`bench archive` leaves them out), not broken.
    """
    status = run_state(run_dir)
    if status["state"] != "finished" or status.get("spec_hash") != spec.hash:
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = set(pq.read_schema(run_dir / "records.parquet").names)
        versions = set(pq.read_table(run_dir / "records.parquet", columns=["schema_version"])[0].to_pylist())
        if (run_dir / "predictions.parquet").exists():
            pq.read_schema(run_dir / "predictions.parquet")
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return False
    return columns | set(ADDED_COLUMNS) == set(RECORD_COLUMNS) and versions <= set(READABLE_VERSIONS)


def execute(
    spec: RunSpec,
    suite_dir: Path,
    tracking_uri: str | None = None,
    parent: str | None = None,
    spread: Spread | None = None,
    work: Work | None = None,
    micro_batch: int | None = None,
) -> str:
    """Runs one trial in `suite_dir`/<run id>, unless it is finished; "finished", "skipped" or "failed".

    An exception of the method ends in status.json (state "failed", the error in one line) and error.txt (the
    traceback), never in the caller: the other trials go on. Ctrl-C is passed on, with state "interrupted". `spread`
    runs the parts of a method that has some; None leaves it to the method, one after the other. `work` is what
    the trial does: by default it fits on train and validation, then predicts test. `micro_batch` is the profile's.

    A trial that was killed, interrupted or ended by what is around it (`comes_from_outside`) goes on from its newest
    checkpoint, to the same weights and records; one whose method failed begins anew, for what made it fail may have
    been mended. A process that still works on the trial is waited for: the workers of a killed driver live on for a
    moment. UserError where it does not end.
    """
    run_dir = suite_dir / spec.run_id
    with alone_in(run_dir):
        if is_finished(spec, run_dir):
            return "skipped"
        return _execute(spec, suite_dir, run_dir, tracking_uri, parent, spread, work, micro_batch)


def _execute(
    spec: RunSpec,
    suite_dir: Path,
    run_dir: Path,
    tracking_uri: str | None,
    parent: str | None,
    spread: Spread | None,
    work: Work | None,
    micro_batch: int | None,
) -> str:
    """`execute` without the lock: "finished" or "failed"."""
    before = run_state(run_dir)
    fresh = before["state"] == "missing" or bool(before.get(FRESH))
    started = time.time()
    status: dict[str, Any] = {
        "state": "running",
        "error": None,
        "started": _iso(started),
        "spec_hash": spec.hash,
    } | ({FRESH: True} if fresh else {})
    if not _goes_on(before, spec):
        forget_checkpoints(run_dir)
    (run_dir / "progress.json").unlink(missing_ok=True)
    (run_dir / PHRASINGS_FILE).unlink(missing_ok=True)  # of weights that are trained anew
    write_json(run_dir / "spec.json", spec.model_dump(mode="json"))
    write_json(run_dir / "status.json", status)
    tracker = None
    try:
        tracker = tracker_of(spec, suite_dir, tracking_uri, parent, fresh)
        if tracker is not None and tracker.open() and status.pop(FRESH, False):
            write_json(run_dir / "status.json", status)
        with (run_dir / "output.log").open("a", encoding="utf-8") as output, printing_to(output):
            status["fit"] = (work or fit_and_predict)(spec, suite_dir, run_dir, tracker, spread, micro_batch)
            status["files"] = files_left(run_dir)
    except Exception as error:
        status |= failure_of(error)
        # a full disk must not hide the reason: the status is the shorter of the two, and written in any case
        with contextlib.suppress(OSError):
            write_text(run_dir / "error.txt", traceback.format_exc())
    except BaseException:
        _end(run_dir, status | {"state": "interrupted"}, started, tracker)
        raise
    else:
        (run_dir / "error.txt").unlink(missing_ok=True)
        status["state"] = "finished"
    _end(run_dir, status, started, tracker)
    return status["state"]


def failure_of(error: BaseException) -> dict[str, Any]:
    """What status.json says of a trial that ended with `error`."""
    # what the user can mend: a mistake in the data or options, or a full disk
    mendable = isinstance(error, UserError) or full_disk(error) is not None
    return {
        "state": "failed",
        "error": _one_line(error),
        "user_error": mendable,
        "goes_on": isinstance(error, UserError) or comes_from_outside(error),
    }


def _goes_on(before: dict[str, Any], spec: RunSpec) -> bool:
    """Whether what a trial of the status `before` left is a part of this one."""
    failed = before.get("error") is not None and not before.get("goes_on", before.get("user_error"))
    return before.get("spec_hash") == spec.hash and not failed


def fit_and_predict(
    spec: RunSpec,
    suite_dir: Path,
    run_dir: Path,
    tracker: Tracker | None,
    spread: Spread | None,
    micro_batch: int | None = None,
) -> dict[str, Any]:
    """The work itself; the FitSummary as a dict. Records and predictions are on disk when it returns.

    Of several workers (`bench.workers`) all train, and the leading one does the rest.
    """
    from bench import environment
    from bench.data.splits import load_splits
    from bench.methods import METHODS
    from bench.workers import Quiet, here

    splits = load_splits(suite_dir / "splits.json")
    if splits.hash != spec.split_hash:
        raise UserError(
            f"{suite_dir / 'splits.json'} has split {splits.hash}, the run wants {spec.split_hash}: use another --name"
        )
    environment.seed_everything(spec.seed)
    method: Method = build(spec, spread, micro_batch)
    if not here().leads:
        return asdict(method.fit(splits.train, splits.val, run_dir, Quiet()))
    method_package = {"method_package": METHODS[spec.method].package}
    write_json(run_dir / "env.json", environment.describe(spec.seed) | starting_weights(spec) | method_package)
    log = RunLog(run_dir, tracker)
    if here().count == 1:  # a stop that the leader alone hears would leave the others waiting for it
        log.progress("prepare", 0, 1)
    fit = method.fit(splits.train, splits.val, run_dir, log)
    fit.given["split"] = splits.hash
    records, predictions = collect(spec, splits, method.predict(splits.test, log))
    write_table(predictions, run_dir / "predictions.parquet")
    write_table(records, run_dir / "records.parquet", RECORD_COLUMNS)
    try:
        from bench.sampling import leave_sampling

        leave_sampling(method, splits.test, records, predictions, run_dir)
    except Exception as error:  # a figure is no reason to lose a trial
        fit.notes.append(f"no sampling figure: {_one_line(error)}")
    return asdict(fit)


def build(spec: RunSpec, spread: Spread | None = None, micro_batch: int | None = None) -> Method:
    """The method of a spec, to be run as the harness says."""
    from bench.methods import METHODS

    method, entry = METHODS[spec.method].build(spec), METHODS[spec.method]
    if spread is not None and entry.spreads:
        method.spread = spread
    if entry.uses_backbone:
        method.micro_batch = micro_batch
    return method


def collect(spec: RunSpec, splits: Splits, predictions: Iterable[Prediction]) -> tuple[list[dict], list[dict]]:
    """Scores the predictions of the test split: records (counts at original resolution) and masks (run lengths).

    Raises RuntimeError where a target is left out, answered twice or has a mask of another size.
    """
    from bench.data.dataset import load_mask

    records, masks = [], []
    for prediction in checked(predictions, splits.test):
        sample, target = prediction.sample, prediction.target
        truth = load_mask(target.mask_file)
        records.append(record_of(spec, prediction, truth))
        ids = {"dataset": sample.dataset, "object": target.object, "image_id": sample.image_id}
        size = {"height": sample.height, "width": sample.width}
        root = splits.roots[sample.dataset]
        files = {
            "image_file": _relative(sample.image_file, root),
            "mask_file": _relative(target.mask_file, root),
        }
        masks.append({**ids, **files, **size, "runs": encode_mask(prediction.mask)})
    return records, masks


def record_of(spec: RunSpec, prediction: Prediction, truth: np.ndarray) -> dict[str, Any]:
    """The record of one prediction against its target's (height, width) bool mask, asked for by its first prompt."""
    from bench.metrics import counts, lesions, surfaces

    sample, target = prediction.sample, prediction.target
    tp, fp, fn = (int(count) for count in counts(prediction.mask, truth))
    return {
        "schema_version": SCHEMA_VERSION,
        "spec_hash": spec.hash,
        "split_hash": spec.split_hash,
        "method": spec.row,
        "backbone": spec.backbone,
        "seed": spec.seed,
        "dataset": sample.dataset,
        "object": target.object,
        "image_id": sample.image_id,
        "patient": sample.patient,
        "prompt": target.prompts[0],
        **{"tp": tp, "fp": fp, "fn": fn, "area_px": tp + fn},
        "height": sample.height,
        "width": sample.width,
        "seconds": prediction.seconds,
        "confidence": prediction.confidence,
        **surfaces(prediction.mask, truth),
        **lesions(prediction.mask, truth),
    }


def checked(predictions: Iterable[Prediction], samples: Sequence[Sample]) -> Iterator[Prediction]:
    """Passes predictions on, and raises RuntimeError unless each (image, object) comes once with its image's
    size.
    """
    missing = {(sample.dataset, sample.image_id, target.object) for sample in samples for target in sample.targets}
    wanted = set(missing)
    for prediction in predictions:
        sample = prediction.sample
        key = (sample.dataset, sample.image_id, prediction.target.object)
        name = " / ".join(key)
        if key not in wanted:
            raise RuntimeError(f"the method predicted {name}, which is not in the test split")
        if key not in missing:
            raise RuntimeError(f"the method predicted {name} twice")
        if prediction.mask.shape != (sample.height, sample.width) or prediction.mask.dtype != bool:
            raise RuntimeError(
                f"the mask of {name} is {prediction.mask.dtype} {prediction.mask.shape}, "
                f"not bool {(sample.height, sample.width)}"
            )
        missing.discard(key)
        yield prediction
    if missing:
        raise RuntimeError(f"the method left out {len(missing)} test targets, first {' / '.join(min(missing))}")


def files_left(run_dir: Path) -> dict[str, str]:
    """What a method has left for `predict` in a run folder, logs apart: path in there -> SHA-256, in hex."""
    places = [run_dir / name for name in LEFT]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return {
        file.relative_to(run_dir).as_posix(): sha256_of(file)
        for file in files
        if file.is_file() and file.suffix != ".log"
    }


def leave_out(spec: RunSpec, run_dir: Path, reason: str) -> None:
    """Writes what a report needs of a run that is not made: its spec, and its state "left out" with the reason."""
    write_json(run_dir / "spec.json", spec.model_dump(mode="json"))
    write_json(run_dir / "status.json", {"state": "left out", "error": reason, "spec_hash": spec.hash})


def mark_interrupted(run_dir: Path, states: Sequence[str] = ("running",)) -> None:
    """Turns a "running" that nobody runs any more (a killed worker), or others of `states`, into "interrupted". A trial
    whose process lives on, and is about to say how it ended, is left alone.
    """
    if run_state(run_dir)["state"] not in states:
        return
    with contextlib.suppress(UserError), alone_in(run_dir, DYING):
        status = run_state(run_dir)
        if status["state"] in states:
            write_json(run_dir / "status.json", status | {"state": "interrupted", "ended": _iso(time.time())})


def _end(run_dir: Path, status: dict[str, Any], started: float, tracker: Tracker | None) -> None:
    ended = time.time()
    write_json(run_dir / "status.json", status | {"ended": _iso(ended), "seconds": round(ended - started, 2)})
    if status["state"] == "finished":
        forget_checkpoints(run_dir)  # not before: without them and unfinished it would begin anew
    if tracker is not None:
        publish(run_dir, tracker)


@contextlib.contextmanager
def printing_to(output: Any) -> Iterator[None]:
    """What a library prints goes into the run's output.log, not through the live display."""
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def _one_line(error: Exception) -> str:
    if message := full_disk(error):
        return message
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) and text else f"{type(error).__name__}: {text}"[:500]


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
