"""MLflow as the index of the runs: the only file that imports mlflow. The run folders stay the truth.

One parent run per suite folder, one child run per trial. A run is found again by its tag `bench_key`, so that
a restarted trial goes on in the same MLflow run. No call here ever stops a trial: the first failure is told once, and
points that could not be sent are dropped, for `bench.publish` sends what is missing when the trial has ended. (Sent
again without a look they might be there twice: a call that failed here may have arrived.)
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.atomic import write_file
from bench.errors import UserError
from bench.locks import lock_file
from bench.urls import masked, refuse_password

EXPERIMENT = "boltzbench"
FLUSH_INTERVAL = 5.0  # seconds; a call to SQLite takes a third of a second when several trials write
RETRY_INTERVAL = 60.0  # seconds before a tracker that failed is tried again
BATCH = 1000  # metrics per call, MLflow's limit
CHECKPOINT_LIMIT = 256 * 2**20  # bytes; larger artifacts stay in the run folder only


def store_uri(runs_dir: Path, asked: str | None = None) -> str:
    """The store asked for, else MLFLOW_TRACKING_URI, else the SQLite file in `runs_dir`, absolute.

    UserError where the one asked for holds a password: a command line is seen and kept by others; and where it has no
    scheme, by which MLflow knows a server from a database.
    """
    if asked is not None:
        instead = (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI, in the environment"
        )
        refuse_password("--tracking-uri", asked, instead)
    uri = asked or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(runs_dir / 'mlflow.db').resolve()}"
    if "://" not in uri and not uri.startswith(("databricks", "file:", "/")):
        name = "MLFLOW_TRACKING_URI" if asked is None else "--tracking-uri"
        raise UserError(f"{name}: {uri!r} is no address of MLflow: write http://HOST:PORT, or sqlite:///FILE")
    return uri


def client(uri: str) -> Any:
    """An MlflowClient that prints nothing, sends no telemetry and gives up on a dead server quickly."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # a repeated call may have arrived before
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def initialize_store(uri: str, runs_dir: Path) -> bool:
    """Creates the database and the experiment; False (told once on stderr) where the store cannot be reached.

    The driver calls it before any worker starts: two processes that create MLflow's tables at once break
    them.
    """
    runs_dir.mkdir(parents=True, exist_ok=True)
    try:
        with (runs_dir / ".mlflow.lock").open("a") as lock:
            lock_file(lock)
            file = _sqlite_file(uri)
            if file is not None and not file.exists():
                _create_database(file, runs_dir)
            _experiment_id(client(uri), runs_dir if uri.startswith("sqlite:") else None)
        return True
    except Exception as error:
        _warn(uri, error)
        return False


def _sqlite_file(uri: str) -> Path | None:
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return Path(name) if name and name != ":memory:" else None


def _create_database(file: Path, runs_dir: Path) -> None:
    """Makes `file` in one step. MLflow needs seconds and over sixty migrations, and a database whose maker was killed
    between two statements is one that MLflow never opens again.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / file.name
        _experiment_id(client(f"sqlite:///{made}"), runs_dir)
        write_file(file, lambda handle: handle.write(made.read_bytes()))


def _experiment_id(mlflow: Any, runs_dir: Path | None) -> str:
    found = mlflow.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return found.experiment_id
    # only our own SQLite store keeps artifacts beside it; a server decides that for itself
    location = (runs_dir / "mlartifacts").resolve().as_uri() if runs_dir else None
    try:
        return mlflow.create_experiment(EXPERIMENT, artifact_location=location)
    except Exception:  # somebody else's first `bench run` on this server may have been faster
        if (found := mlflow.get_experiment_by_name(EXPERIMENT)) is None:
            raise
        return found.experiment_id


def _warn(uri: str, error: Exception) -> None:
    reason = masked((str(error).splitlines() or [""])[0])[:200]
    print(
        f"warning: MLflow at {masked(uri)} is not reachable ({type(error).__name__}: {reason}); "
        "the run goes on, everything is in the run folders, and the same command sends it later",
        file=sys.stderr,
    )


class Tracker:
    """One MLflow run. Every method returns quietly whatever MLflow does."""

    def __init__(
        self,
        uri: str,
        key: str,
        name: str,
        tags: dict[str, str] | None = None,
        params: dict[str, Any] | None = None,
        parent: str | None = None,
        fresh: bool = False,
    ):
        """Finds the run tagged bench_key=`key`, or creates it; `parent` is the parent run's id.

        `fresh` says that what an earlier run of this key measured is gone from disk: a new run takes its key,
        so that no curve gets every point twice.
        """
        self.uri = uri
        self.run_id: str | None = None
        self.finished = False
        self.failed = False  # has anything not arrived since `begin_again`
        self._name, self._key = name, key
        self._tags = {"bench_key": key, **(tags or {})}
        if parent:
            self._tags["mlflow.parentRunId"] = parent
        self._params = params or {}
        self._fresh = fresh
        self._pending: list[tuple[str, float, int, int]] = []  # name, value, milliseconds, step
        self._known: dict[str, set[int]] = {}  # the steps that MLflow has of each curve that was asked for
        self._flushed = time.monotonic()
        self._retry_at = 0.0
        self._warned = False
        self._client: Any = None
        self.open()

    def open(self) -> bool:
        """Whether the run is open: found or made now, where it was not and MLflow is there."""
        if self.run_id is None:
            self._guard(lambda: None)
        return self.run_id is not None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Queues a point per value; they are sent in batches every few seconds."""
        now = int(time.time() * 1000)
        self._pending += [(name, float(value), now, int(step)) for name, value in values.items()]
        if time.monotonic() - self._flushed >= FLUSH_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Sends what is queued."""
        self._flushed = time.monotonic()
        if self._pending:
            self._guard(self._send)

    def _send(self) -> None:
        """Sends what is queued and MLflow has not: an earlier start of the trial may have sent it."""
        from mlflow.entities import Metric

        while self._pending:
            batch = self._pending[:BATCH]
            new = []
            for name, value, milliseconds, step in batch:
                if step not in self._steps(name):
                    self._steps(name).add(step)
                    new.append(Metric(name, value, milliseconds, step))
            if new:
                self._client.log_batch(self.run_id, metrics=new)
            del self._pending[: len(batch)]

    def _steps(self, name: str) -> set[int]:
        if name not in self._known:
            self._known[name] = {point.step for point in self._client.get_metric_history(self.run_id, name)}
        return self._known[name]

    def begin_again(self) -> None:
        """Forgets that MLflow was away, and what it had: the next call tries it."""
        self.failed, self._retry_at, self._known = False, 0.0, {}

    def catch_up(self, points: Iterable[tuple[int, float, dict[str, float]]]) -> None:
        """Sends, of (step, Unix seconds, values), what MLflow has not at that step, after all that is queued."""
        self.flush()
        self._known = {}
        self._pending += [
            (name, value, int(seconds * 1000), step)
            for step, seconds, values in points
            for name, value in values.items()
        ]
        self._guard(self._send)

    def tag(self, **tags: str) -> None:
        """Sets tags: what may change from one start of the trial to the next."""

        def send() -> None:
            for name, value in tags.items():
                self._client.set_tag(self.run_id, name, str(value))

        self._guard(send)

    def artifacts(self, *paths: Path, folder: str | None = None) -> None:
        """Copies files, or folders with what is in them, to the run; missing and very large files are left
        out.
        """

        def send() -> None:
            for path in paths:
                if path.is_dir():
                    self._client.log_artifacts(self.run_id, str(path), folder or path.name)
                elif path.exists() and path.stat().st_size <= CHECKPOINT_LIMIT:
                    self._client.log_artifact(self.run_id, str(path), folder)

        self._guard(send)

    def finish(self, status: str) -> None:
        """Sends the rest and ends the run: status is FINISHED, FAILED or KILLED."""
        self.finished = True
        self._retry_at = 0.0
        self.flush()
        self._guard(lambda: self._client.set_terminated(self.run_id, status))

    def _guard(self, action: Callable[[], None]) -> None:
        if time.monotonic() < self._retry_at:
            self.failed = True
            return
        try:
            if self.run_id is None:
                self._open()
            action()
        except Exception as error:
            self.failed, self._known = True, {}  # what failed may have arrived
            self._pending.clear()
            self._retry_at = time.monotonic() + RETRY_INTERVAL
            if not self._warned:
                _warn(self.uri, error)
            self._warned = True

    def _open(self) -> None:
        from mlflow.entities import Param

        self._client = client(self.uri)
        experiment = _experiment_id(self._client, None)
        found = self._client.search_runs([experiment], f"tags.bench_key = '{self._key}'", max_results=1)
        if found and self._fresh:
            self._client.set_tag(found[0].info.run_id, "bench_key", f"replaced {self._key}")
            found = []
        self._fresh = False  # a run that is made from here on is this one, even where the answer does not arrive
        if found:
            run = found[0]
            self._client.update_run(run.info.run_id, status="RUNNING")
            for name, value in self._tags.items():
                self._client.set_tag(run.info.run_id, name, str(value))
        else:
            run = self._client.create_run(experiment, tags=_strings(self._tags), run_name=self._name)
        # a parameter cannot change in MLflow: only those that a killed process has not sent
        params = {name: value for name, value in _strings(self._params).items() if name not in run.data.params}
        if params:
            self._client.log_batch(
                run.info.run_id, params=[Param(name, value[:6000]) for name, value in params.items()][:100]
            )
        self.run_id = run.info.run_id


def _strings(values: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}
