"""The driver of a suite: data, splits, plan, trials that are missing, report. `bench run` calls `run`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import sharing
from bench.atomic import read_json
from bench.checkpoint import forget_checkpoints
from bench.errors import UserError
from bench.estimate import estimate, format_seconds, lanes, running_order, workers_of
from bench.execute import Work, is_finished, leave_out, mark_interrupted, run_state
from bench.inputs import generated_phantom, load, preflight
from bench.lease import leased
from bench.locks import locked
from bench.plan import Plan, Request, choose, make_plan, phantom_folder
from bench.publish import publish_rest
from bench.records import READABLE_VERSIONS, SCHEMA_VERSION
from bench.show_plan import show, show_first, show_left_out
from bench.spec import RunSpec
from bench.stopping import stoppable, terminable
from bench.suite_folder import read_suite
from bench.write_suite import earlier_specs, write_suite

if TYPE_CHECKING:
    from rich.console import Console

    from bench.tracking import Tracker

FAILED, USER_ERROR, STOPPED = 1, 2, 130


def dry_run(request: Request, console: Console, measure: bool = False) -> int:
    """Prints the plan and every data problem, writes nothing; `measure`: what it costs, too. The exit code: 2 where
    there are data problems.
    """
    from bench.data.storage import is_url

    plan = prepare_dry(request, console)
    if plan is None:
        return USER_ERROR
    plan = _with_kept(plan)
    todo = missing(plan)
    show(plan, console, todo, request.executor)
    if measure:
        from bench.measured_cost import show_measured

        show_measured(plan, todo, console)
    written = "only the copy of remote data" if any(map(is_url, request.data)) else "nothing"
    console.print(f"dry run: nothing was trained and {written} written", highlight=False)
    return 0


def run(request: Request, console: Console) -> int:
    """Runs the trials of a suite that are missing, then the report. The exit code: 0, 1 (a trial failed), 2,
    130.

    UserError: unknown names, data or weights that cannot be used, a folder of another split, a second run on it.
    """
    return until_stopped(_run, request, console)


def _run(request: Request, console: Console) -> int:
    began = time.monotonic()
    plan = prepare(request, console)
    if plan is None:
        return USER_ERROR
    with alone(plan, request):
        plan = _with_kept(plan)
        todo = missing(plan)
        show(plan, console, todo, request.executor)
        write_suite(plan, request)
        for spec, reason in left_out(plan).items():
            leave_out(spec, plan.folder / spec.run_id, reason)
        with tracking(plan, request) as (uri, parent):
            with stoppable(plan.folder):
                train(plan, request, todo, console, uri, parent)
            if parent is not None:
                publish_rest(plan.folder, plan.specs, store(request), parent.run_id)
            failed = failures(plan, console)
            _report(plan, console, parent)
            if parent is not None:
                parent.finish("FAILED" if failed else "FINISHED")
        send_to_storage(plan, request)
    console.print(f"took     {format_seconds(time.monotonic() - began)}", highlight=False)
    return exit_code(plan, failed)


@contextlib.contextmanager
def alone(plan: Plan, request: Request) -> Iterator[None]:
    """Holds the suite's folder, and its place at `--storage` with what is there brought into the folder.

    UserError where another command holds it, or where what is there is another suite, also one that was made since
    this one began.
    """
    with locked(plan.folder), contextlib.ExitStack() as held:
        check_folder(plan, request.runs_dir)
        if request.storage is not None:
            held.enter_context(leased(sharing.exchange_of(request.storage, plan.folder)))
            sharing.bring(request.storage, plan.folder, lambda: check_folder(plan, request.runs_dir))
        yield


def send_to_storage(plan: Plan, request: Request) -> None:
    """Sends what was made after the trials: reports, results of a search. What has gone here goes there."""
    if request.storage is not None:
        sharing.exchange_of(request.storage, plan.folder).push(prune=True)


def prepare(request: Request, console: Console) -> Plan | None:
    """The plan on its data, with the phantom generated where it is wanted; None where data problems, told, stop it."""
    store(request)  # told before any work
    choice = choose(request)
    sound, weights, own_weights = preflight(request, choice, choice.folders, console)
    if not sound:
        return None
    if not choice.folders and not phantom_folder(request, choice).is_dir():
        show_first(make_plan(choice, request, None), console)
    datasets = load(request, choice.folders or generated_phantom(request, choice, console))
    plan = make_plan(choice, request, datasets, weights, own_weights)
    check_folder(plan, request.runs_dir)
    return plan


def prepare_dry(request: Request, console: Console) -> Plan | None:
    """The same and nothing written: a phantom that is not there is left out."""
    from bench.data.dataset import find_datasets

    choice = choose(request)
    phantom = phantom_folder(request, choice)
    folders = choice.folders or (tuple(find_datasets([phantom])) if phantom.is_dir() else ())
    sound, weights, own_weights = preflight(request, choice, folders, console)
    if not sound:
        return None
    plan = make_plan(choice, request, load(request, folders) if folders else None, weights, own_weights)
    if folders:
        check_folder(plan, request.runs_dir)
    return plan


def until_stopped(work: Callable[[Request, Console], int], request: Request, console: Console) -> int:
    """The exit code of `work`; after Ctrl-C or SIGTERM, at whatever moment, 130 and a line on how to go on."""
    with terminable():
        try:
            return work(request, console)
        except KeyboardInterrupt:
            print(
                "\nstopped; finished trials and checkpoints are kept. Go on where it stopped with:\n  "
                f"{request.command}",
                file=sys.stderr,
            )
            return STOPPED


def exit_code(plan: Plan, failed: Sequence[RunSpec]) -> int:
    """0 where nothing `failed`, 2 where the user can mend all that did, else 1."""
    if not failed:
        return 0
    mendable = all(run_state(plan.folder / spec.run_id).get("user_error") for spec in failed)
    return USER_ERROR if mendable else FAILED


def missing(plan: Plan) -> list[RunSpec]:
    """The trials that can be run and have no finished records, in the order in which they begin."""
    without = left_out(plan)
    todo = [spec for spec in plan.specs if spec not in without and not is_finished(spec, plan.folder / spec.run_id)]
    return running_order(todo, plan.work, plan.choice.hardware)


def left_out(plan: Plan) -> dict[RunSpec, str]:
    """The trials that there is nothing to run for, each with the reason and the fix."""
    from bench.methods import why_not_run

    return {spec: reason for spec in plan.specs if (reason := why_not_run(spec))}


def check_folder(plan: Plan, runs_dir: Path) -> None:
    """UserError where the folder holds another suite, profile, split or schema version: tables must not mix
    them.
    """
    file = plan.folder / "suite.json"
    if not file.exists():
        return
    fix = f"choose another --name, or remove {plan.folder}"
    there = read_json(file, fix)
    version = there.get("schema_version") if isinstance(there, dict) else None
    if version not in READABLE_VERSIONS:
        raise UserError(f"{file} has schema_version {version!r}, not {SCHEMA_VERSION}: {fix}")
    read_suite(plan.folder, fix)
    here = {
        "suite": plan.choice.suite.name,
        "profile": plan.choice.profile.name,
        "split_hash": plan.split_hash,
        "tuned": plan.tuned is not None,
    }
    there.setdefault("tuned", False)
    for field, value in here.items():
        if there.get(field) != value:
            raise UserError(f"{file} has {field} {there.get(field)!r}, this run {value!r}: {fix}")


def _with_kept(plan: Plan) -> Plan:
    """The plan, where a trial that there is nothing to run for is the finished one of an earlier --weights."""
    kept = {
        spec.model_copy(update={"own_weights": None}): spec
        for spec in earlier_specs(plan.folder)
        if spec.own_weights is not None and is_finished(spec, plan.folder / spec.run_id)
    }
    without = left_out(plan)
    return replace(plan, specs=tuple(kept.get(spec, spec) if spec in without else spec for spec in plan.specs))


def store(request: Request) -> str:
    """The URI of MLflow's store. UserError where it cannot be one."""
    from bench.tracking import store_uri

    return store_uri(request.runs_dir.resolve(), request.tracking_uri)


@contextlib.contextmanager
def tracking(plan: Plan, request: Request) -> Iterator[tuple[str | None, Tracker | None]]:
    """The trials' store, made before any worker starts, and the suite's parent run; (None, None) without MLflow."""
    from bench import environment
    from bench.tracking import Tracker, initialize_store

    uri = store(request)
    if not initialize_store(uri, request.runs_dir.resolve()):
        yield None, None
        return
    choice = plan.choice
    suite = read_json(plan.folder / "suite.json", "run the command again")
    key = f"suite {plan.split_hash} {plan.folder.name} {suite['id']}"
    git = environment.git_state()
    tags = {"split_hash": plan.split_hash, "suite": choice.suite.name, "profile": choice.profile.name}
    tags |= {"data": "phantom" if plan.splits and plan.splits.phantom else ", ".join(plan.splits.roots)}
    tags |= {"git_commit": git["commit"]} if git else {}
    params: dict[str, Any] = {"suite": choice.suite.name, "profile": choice.profile.name}
    tracker = Tracker(uri, key, plan.folder.name, tags, params)
    alone = uri.startswith("sqlite:") and len(choice.hardware.nodes) > 1
    if alone:
        print(
            "warning: the nodes of a cluster cannot share MLflow's SQLite file, so the trials' curves come there when "
            "the suite has ended: for live ones set MLFLOW_TRACKING_URI to a server (docs/cluster.md)",
            file=sys.stderr,
        )
    try:
        yield None if alone else uri, tracker
    finally:
        if not tracker.finished:  # stopped, or an error on the way
            tracker.finish("KILLED")


def train(
    plan: Plan,
    request: Request,
    todo: Sequence[RunSpec],
    console: Console,
    uri: str | None,
    parent: Tracker | None,
    work: Work | None = None,
) -> None:
    """Runs the trials `todo` by the executor asked for, with the live display; `work` is that of `execute`."""
    for spec in plan.specs:
        if run_state(plan.folder / spec.run_id)["state"] == "finished" and spec not in todo:
            forget_checkpoints(plan.folder / spec.run_id)  # of one that was killed when all was done
    if not todo:
        return
    from bench import tuning
    from bench.display import Display

    choice = plan.choice
    local = request.executor == "local"
    count = 1 if local else lanes(choice.profile, choice.hardware)
    workers = 1 if local else workers_of(choice.profile, choice.hardware)
    expected = {spec.run_id: estimate(spec, plan.work, choice.hardware, workers) for spec in plan.specs}
    title = f"{choice.suite.name} · {choice.profile.name} · {plan.folder}"
    parent_id = parent.run_id if parent else None
    # a failed trial gets another try, and must not be shown as failed until it has had it
    for spec in todo:
        (plan.folder / spec.run_id / "progress.json").unlink(missing_ok=True)
        mark_interrupted(plan.folder / spec.run_id, ("running", "failed"))
    shown = [spec for spec in plan.specs if spec not in left_out(plan)]
    url = request.storage
    exchanging = contextlib.nullcontext() if url is None else sharing.following(url, plan.folder)
    with Display(console, plan.folder, shown, expected, count, title), exchanging:
        if local:
            tuning.run_trials_here(todo, plan.folder, uri, parent_id, work, choice.profile.micro_batch, url)
        else:
            hardware, address = choice.hardware, request.address
            tuning.run_trials(todo, plan.folder, choice.profile, hardware, uri, parent_id, address, work, url)


def failures(plan: Plan, console: Console) -> list[RunSpec]:
    """The trials that did not finish, each told with its reason and where the traceback is."""
    without = left_out(plan)
    failed = [
        spec
        for spec in plan.specs
        if spec not in without and run_state(plan.folder / spec.run_id)["state"] != "finished"
    ]
    for spec in failed:
        run_dir = plan.folder / spec.run_id
        reason = run_state(run_dir).get("error") or "its process was killed"
        where = run_dir / "error.txt"
        details = where if where.exists() else run_dir / "output.log"
        console.print(
            f"failed: {spec.run_id}: {reason}\n        see {details}",
            markup=False,
            highlight=False,
            style="red",
        )
    return failed


def _report(plan: Plan, console: Console, parent: Tracker | None) -> None:
    from reports.build import build_report
    from reports.tables import to_rich

    report = build_report(plan.folder)
    for table in [report.ablations[name] for name in plan.ablations if name in report.ablations] or [report.main]:
        console.print(to_rich(table, console.width))
    show_left_out(plan, console)
    console.print(f"report   {report.html}", highlight=False, soft_wrap=True)
    if parent is not None:
        parent.artifacts(plan.folder / "report", plan.folder / "suite.json", plan.folder / "splits.json")
        for spec in plan.specs:
            parent.artifacts(plan.folder / spec.run_id / "records.parquet", folder=f"records/{spec.run_id}")
