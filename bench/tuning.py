"""Ray Tune runs the trials of a suite: with `bench.launch` and `bench.cluster` the only file that imports ray.

Ray places the trials on cores and GPUs and nothing more: what is finished, what goes on and what failed is
read from the run folders, so a killed driver loses nothing and a fresh Tuner is given the missing trials
only. It runs them on this machine, in a Ray of our own, or on a cluster that there is (`bench.cluster`).
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from bench.cluster import check_nodes, connected_hardware, our_code, reach
from bench.environment import NODE, Hardware
from bench.errors import PartLost, UserError, is_out_of_memory
from bench.estimate import check_workers, lanes, resources, workers_of
from bench.execute import Work, execute, fit_and_predict, mark_interrupted, run_state
from bench.interface import Spread
from bench.launch import Team
from bench.locks import TUNE_FILES
from bench.sharing import trial_folder
from bench.spec import Profile, RunSpec
from bench.stopping import stop_requested

POLL = 0.3  # seconds; how fast Ctrl-C is noticed
STOP_GRACE = 600.0  # seconds for the running trials, each to the end of its step or validation, when asked to stop
SEEN_LATE = 90.0  # seconds more on a cluster: a shared file system shows a new file a minute late
LOST = 3  # times that a trial is begun again when its process or its node is lost; it goes on from its checkpoint
PAUSE = 20.0  # seconds until the trials are begun again when memory ran out, longer each time
GRACE = 5.0  # seconds for a part of a trial to end by itself when another has failed
OBJECT_STORE = 128 * 2**20  # bytes: trials exchange files, not objects
WAITING = {"cpu": 0, "memory": 1}  # a byte: Ray wants something reserved
ENVIRONMENT = {
    "RAY_ENABLE_AUTO_CONNECT": "0",  # after Ctrl-C, Tune's thread must not start another Ray (see bench/__init__.py)
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # data paths and the tracking store keep their meaning
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what a worker prints goes into the run's output.log
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a CPU trial sees no GPU
    "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true",  # nnU-Net's experts
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run_trials(
    specs: Sequence[RunSpec],
    suite_dir: Path,
    profile: Profile,
    hardware: Hardware,
    tracking_uri: str | None = None,
    parent: str | None = None,
    address: str | None = None,
    work: Work | None = None,
    exchange_url: str | None = None,
) -> None:
    """Runs every spec once, in the order given, as many side by side as the profile's resources allow, on this machine
    or on the Ray cluster at `address`. `work` is that of `execute`; trials work in `suite_dir`, or exchange files with
    it through `exchange_url` (`bench.sharing`).

    Returns when all have ended, however they ended: status.json in each run folder says how.
    KeyboardInterrupt stops the trials at once, marks them "interrupted" and is passed on; it is raised, too, when the
    trials have stopped because the user asked the suite to (`bench.stopping`). UserError where Ray cannot start, or a
    node lacks what trials need.
    """
    suite_dir = suite_dir.resolve()
    # Tune's own files, where all nodes see them if there is such a place
    storage = Path(tempfile.mkdtemp(prefix=TUNE_FILES, dir=suite_dir if exchange_url is None else None))
    grace = STOP_GRACE + (SEEN_LATE if address else 0)
    todo, short = list(specs), 0
    try:
        while todo:
            place = ray_at(address, profile.cpus_per_trial) if address else _ray(hardware, profile.cpus_per_trial)
            try:
                with place:
                    if address:
                        waiting = any(_waits(spec, workers_of(profile, hardware), exchange_url) for spec in todo)
                        check_nodes(suite_dir, exchange_url, {spec.method for spec in todo}, waiting)
                    _fit(todo, suite_dir, profile, storage, tracking_uri, parent, grace, work, exchange_url)
                return
            except RuntimeError as error:
                # Ray ends its workers, the other programs' doing or not, and Tune ends with the first of them
                if not is_out_of_memory(error.__cause__):
                    raise
                left = [s for s in todo if run_state(suite_dir / s.run_id)["state"] not in ("finished", "failed")]
                short = short + 1 if len(left) == len(todo) else 1
                todo = left
                _wait_for_memory(suite_dir, str(error), short)
    finally:
        for spec in specs:  # Ray is down: whatever still says "running" was killed
            mark_interrupted(suite_dir / spec.run_id)
        shutil.rmtree(storage, ignore_errors=True)


def _wait_for_memory(suite_dir: Path, said: str, short: int) -> None:
    """A pause, which the user is told of, when Ray has ended workers for want of memory, the `short`-th time in a row.
    UserError at the last, KeyboardInterrupt where the suite is asked to stop.
    """
    used = re.search(r"was (\S+) used / (\S+) limit", said)
    largest = re.search(r"\d+\t([\d.]+)\t(.+)", said)
    most = f"; most, {largest[1]}GB, by {largest[2]}" if largest else ""
    told = f" ({used[1]} of {used[2]} used{most})" if used else ""
    fix = "end what else takes it, or let fewer trials run side by side (--set memory_gib_per_trial=N)"
    if short > LOST:
        raise UserError(f"memory ran out {short} times{told}: {fix}, and run the same command again")
    pause = short * PAUSE
    print(
        f"warning: memory ran out{told}: the running trials go on from their checkpoints in {pause:.0f} s; {fix}",
        file=sys.stderr,
    )
    end = time.monotonic() + pause
    while time.monotonic() < end:
        if stop_requested(suite_dir):
            raise KeyboardInterrupt
        time.sleep(POLL)


def run_trials_here(
    specs: Sequence[RunSpec],
    suite_dir: Path,
    tracking_uri: str | None = None,
    parent: str | None = None,
    work: Work | None = None,
    micro_batch: int | None = None,
    exchange_url: str | None = None,
) -> None:
    """The same in this process, one after the other: for debuggers, tests and machines where Ray does not
    start.
    """
    for spec in specs:
        with trial_folder(exchange_url, suite_dir, spec.run_id) as folder:
            execute(spec, folder, tracking_uri, parent, work=work, micro_batch=micro_batch)


def _threads(cpus: float) -> dict[str, str]:
    """The environment of a worker with `cpus`: OMP reads its variable once, when torch is loaded, so it has to stand
    before the worker imports anything.
    """
    return {name: str(int(max(1, cpus))) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def _ray(hardware: Hardware, cpus: float) -> contextlib.AbstractContextManager[None]:
    """A Ray of our own on this machine for as long as the trials run."""
    return _connected(
        "Ray does not start ({}): use --executor local",
        address="local",
        num_cpus=hardware.cores,
        num_gpus=len(hardware.gpus),
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        runtime_env={"env_vars": ENVIRONMENT | _threads(cpus)},
    )


def ray_at(address: str, cpus: float = 1) -> contextlib.AbstractContextManager[None]:
    """The Ray cluster at `address` ("auto" or HOST:PORT), whose workers run this very code. UserError where there is
    none.
    """
    reach(address)
    code = our_code()
    return _connected(
        f"--address {address}: Ray does not take us ({{}}); where it asks for a token, ~/.ray/auth_token or "
        "RAY_AUTH_TOKEN has to be the cluster's (docs/cluster.md)",
        address=address,
        runtime_env=code | {"env_vars": ENVIRONMENT | _threads(cpus) | code["env_vars"]},
    )


@contextlib.contextmanager
def _connected(failure: str, **options: Any) -> Iterator[None]:
    """Ray, started or joined, until the block ends; UserError by `failure` where that is not to be had."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    on_sigterm, on_sigchld = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGCHLD)
    try:
        ray.init(log_to_driver=False, configure_logging=False, logging_level=logging.ERROR, **options)
    except SystemExit:  # Ray's own way with SIGTERM while it starts
        raise KeyboardInterrupt from None
    except Exception as error:
        raise UserError(failure.format(" ".join(str(error).split())[:200])) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end this process at once
    try:
        yield
    finally:
        # Tune leaves references in cycles. Another thread that collects one while Ray shuts down ends this process at
        # once, with exit code 1 and no word of ours ("The core worker has already been shutdown")
        gc.collect()
        ray.shutdown()
        signal.signal(signal.SIGCHLD, on_sigchld)  # Ray ignores it, and then every child's exit code reads 0


def _fit(
    specs: Sequence[RunSpec],
    suite_dir: Path,
    profile: Profile,
    storage: Path,
    tracking_uri: str | None,
    parent: str | None,
    grace: float,
    work: Work | None,
    exchange_url: str | None,
) -> None:
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    hardware = connected_hardware()
    reserved = resources(profile.cpus_per_trial, profile.gpus_per_trial, profile.memory_gib_per_trial, hardware)
    spread = partial(_spread, resources(profile.cpus_per_expert, profile.gpus_per_expert, 0, hardware))
    texts = [spec.model_dump_json() for spec in specs]
    # parts on other nodes would need the trial's folder
    spread = spread if exchange_url is None else None
    team = None
    if (count := workers_of(profile, hardware)) > 1:
        if any(spec.recipe is not None for spec in specs):  # nodes may have come since the plan was made
            check_workers(profile, hardware, exchange_url)
        team = Team(count, reserved, str(storage / "workers"), tracking_uri, parent, work or fit_and_predict)
    trainable = _trainable(
        texts, str(suite_dir), tracking_uri, parent, spread, work, team, profile.micro_batch, exchange_url
    )
    waits = [_waits(spec, count, exchange_url) for spec in specs]
    tuner = tune.Tuner(
        # a trial that holds a core while it waits for its experts or workers would leave them none
        tune.with_resources(trainable, lambda config: WAITING if waits[config["trial"]] else reserved),
        param_space={"trial": tune.grid_search(list(range(len(specs))))},
        # no scheduler: `bench.tune` stops by the files. Trials that reserve nothing would all begin at once
        tune_config=tune.TuneConfig(num_samples=1, max_concurrent_trials=lanes(profile, hardware) if team else None),
        run_config=tune.RunConfig(
            name=suite_dir.name,
            storage_path=str(storage),
            # a method that fails ends its trial well, with the status "failed": what is left are lost processes
            failure_config=tune.FailureConfig(max_failures=LOST),
            verbose=0,
        ),
    )
    # in a thread of its own: Tune would take Ctrl-C for itself and carry on for a while
    broken: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            broken.append(error)

    thread = threading.Thread(target=fit, name="tune", daemon=True)
    thread.start()
    asked = None
    while thread.is_alive():
        thread.join(POLL)
        if stop_requested(suite_dir):
            asked = asked or time.monotonic()
            running = any(run_state(suite_dir / spec.run_id)["state"] == "running" for spec in specs)
            if not running or time.monotonic() - asked > grace:
                raise KeyboardInterrupt
    if stop_requested(suite_dir) and any(run_state(suite_dir / spec.run_id)["state"] != "finished" for spec in specs):
        raise KeyboardInterrupt
    if broken:
        raise broken[0]


def _waits(spec: RunSpec, workers: int, exchange_url: str | None) -> bool:
    """Whether a trial reserves nothing: it waits for its experts or its workers, which do."""
    from bench.methods import METHODS

    return (METHODS[spec.method].spreads and exchange_url is None) or (workers > 1 and spec.recipe is not None)


def _trainable(
    texts: list[str],
    suite_dir: str,
    tracking_uri: str | None,
    parent: str | None,
    spread: Spread | None,
    work: Work | None,
    team: Team | None,
    micro_batch: int | None,
    exchange_url: str | None,
) -> Callable[[dict[str, Any]], None]:
    """The function that Tune runs in a worker; it takes specs as JSON, which any pickle carries. `team` trains what the
    shared recipe does.
    """

    def trial(config: dict[str, Any]) -> None:
        import ray
        import torch
        from ray import tune

        os.environ[NODE] = ray.get_runtime_context().get_node_id()
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        spec = RunSpec.model_validate(json.loads(texts[config["trial"]]))
        with trial_folder(exchange_url, Path(suite_dir), spec.run_id) as folder:
            try:
                by = work if team is None or spec.recipe is None else team
                execute(spec, folder, tracking_uri, parent, spread, by, micro_batch)
            except PartLost as error:
                raise RuntimeError(str(error)) from None  # Tune begins the trial again
            except KeyboardInterrupt:
                pass  # asked to stop; status.json says so
            fit = run_state(folder / spec.run_id).get("fit") or {}
        dice = fit.get("best_val_dice")
        tune.report({"val_dice": float("nan") if dice is None else dice})

    return trial


def _spread(
    resources: dict[str, float], work: Callable[[list[dict]], Iterator[dict]], items: list[dict]
) -> Iterator[dict]:
    """The `Spread` of a trial that Ray runs: shares of `items` are Ray tasks that reserve `resources` each.

    They run wherever in the cluster these are free, beside other trials. The first error ends the others and is raised
    as it was in the task; PartLost, when the others have ended, where a task's process or node is gone.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    there = ray.cluster_resources()
    # a node may be gone, which Ray then waits for
    lanes = max(1, int(min(there.get(name.upper(), 0) / amount for name, amount in resources.items())))
    size = ceil(len(items) / lanes)  # not smaller: nnU-Net is imported once a share

    @ray.remote(
        num_cpus=resources["cpu"],
        num_gpus=resources.get("gpu", 0),
        num_returns="streaming",
        max_retries=0,
        scheduling_strategy="DEFAULT",  # not out of what the waiting trial has reserved
        runtime_env={"env_vars": _threads(resources["cpu"])},
    )
    def share(part: list[dict]) -> Iterator[dict]:
        yield from work(part)

    running = [share.remote(items[start : start + size]) for start in range(0, len(items), size)]
    lost = None
    try:
        while running:
            (stream,), running = ray.wait(running, num_returns=1)
            try:
                event = ray.get(next(stream))
            except StopIteration:
                continue
            except RayTaskError:
                raise
            except RayError as error:  # what the others do is not to be lost with it
                lost = lost or error
                continue
            running.append(stream)
            yield event
    except RayTaskError as error:
        raise error.cause from None
    finally:
        for stream in running:
            ray.cancel(stream)
        # asked to stop, a part may not hear it: on a busy machine the signal can be lost. The streams themselves say
        # nothing of it: one that was cancelled counts as ready
        ends = {stream.completed(): stream for stream in running}
        deaf = ray.wait(list(ends), num_returns=len(ends), timeout=GRACE)[1] if ends else []
        for end in deaf:
            ray.cancel(ends[end], force=True)
    if lost is not None:
        raise PartLost(" ".join(str(lost).split())[:300])
