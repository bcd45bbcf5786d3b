"""`bench tune`: trains every configuration of a search on train, compares them on validation, and keeps the best.

Asynchronous successive halving (ASHA, Li et al., MLSys 2020): at the rungs a configuration goes on if its lowest
validation loss so far is in the best third of those that the others had there. What the others had is read from their
run folders, so the rule is the same for every executor, and a killed search goes on with all it knew. No trial sees the
test split: the driver leaves them a file with the samples of train and validation.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from bench import run as driver
from bench.atomic import read_json, write_json, write_text
from bench.errors import UserError
from bench.execute import build, run_state
from bench.interface import FitSummary, Sample, Spread
from bench.options import names
from bench.plan import Plan, Request
from bench.publish import publish_rest, starting_weights
from bench.runlog import RunLog, read_history
from bench.search import goes_on, in_words, parse_space, rungs, space_of, space_texts
from bench.show_plan import show
from bench.spec import Recipe, RunSpec
from bench.stopping import stoppable
from bench.tuned import Budget, Trial, Tuned
from bench.write_suite import write_suite
from experiments import SUITES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bench.tracking import Tracker

SAMPLES = "samples.json"
SIDES = TypeAdapter(dict[str, tuple[Sample, ...]])
SEARCH = "search-{}-{}.json"  # method, backbone


class Stopped(Exception):
    """A configuration that does not go on from `step`."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}")
        self.step = step


class Halving(RunLog):
    """The log of a configuration, which raises `Stopped` at a rung where `others`, run folders, were better."""

    def __init__(self, run_dir: Path, tracker: Tracker | None, at: Sequence[int], others: Sequence[Path]):
        super().__init__(run_dir, tracker)
        self.at, self.others = at, others

    def metrics(self, step: int, **values: float) -> None:
        """As `RunLog.metrics`; then, at a rung, whether to go on."""
        super().metrics(step, **values)
        if step not in self.at or "val_loss" not in values:
            return
        losses = [loss for folder in self.others if (loss := loss_at(folder, step)) is not None]
        own = loss_at(self.run_dir, step)
        assert own is not None
        if not goes_on(own, losses):
            raise Stopped(step)


def validations(run_dir: Path) -> list[tuple[int, float | None, float | None]]:
    """(step, loss, Dice) of each validation in history.jsonl; None for a number that is not finite."""
    rows = (row for _, row in read_history(run_dir / "history.jsonl") if "val_loss" in row)
    return [(row["step"], row["val_loss"], row.get("val_dice")) for row in rows]


def loss_at(run_dir: Path, rung: int) -> float | None:
    """The lowest validation loss up to a rung, infinite where there was none; None for a trial that has not got
    there.
    """
    rows = [(step, loss) for step, loss, _ in validations(run_dir) if step <= rung]
    if not any(step == rung for step, _ in rows):
        return None
    return min((loss for _, loss in rows if loss is not None), default=math.inf)


def fit_configuration(
    spec: RunSpec,
    suite_dir: Path,
    run_dir: Path,
    tracker: Tracker | None,
    spread: Spread | None,
    micro_batch: int | None = None,
) -> dict[str, Any]:
    """The `work` of a trial (`bench.execute`): fit, to the end, to a rung or until the loss is no number any more.

    The FitSummary as a dict, with "outcome" as `bench.tuned.Trial` has it. Leaves no weights and no records.
    """
    from bench import environment
    from bench.workers import Quiet, here

    sides = SIDES.validate_python(read_json(suite_dir / SAMPLES, "run `bench tune` again"))
    search = read_json(suite_dir / SEARCH.format(spec.method, spec.backbone), "run `bench tune` again")
    environment.seed_everything(spec.seed)
    method = build(spec, spread, micro_batch)
    if not here().leads:
        with contextlib.suppress(FloatingPointError):  # the leader's to tell
            method.fit(sides["train"], sides["val"], run_dir, Quiet())
        return {}
    write_json(run_dir / "env.json", environment.describe(spec.seed) | starting_weights(spec))
    others = [suite_dir / run_id for run_id in search["runs"] if run_id != spec.run_id]
    log = Halving(run_dir, tracker, search["budget"]["rungs"], others)
    if here().count == 1:
        log.progress("prepare", 0, 1)
    started = time.perf_counter()
    try:
        fit, outcome = method.fit(sides["train"], sides["val"], run_dir, log), "trained"
    except (Stopped, FloatingPointError) as error:
        outcome = "stopped" if isinstance(error, Stopped) else "diverged"
        fit = FitSummary(str(error), time.perf_counter() - started)
    (run_dir / "model.pt").unlink(missing_ok=True)  # `bench run --tuned` trains anew
    return asdict(fit) | {"outcome": outcome}


def dry_run(request: Request, console: Console) -> int:
    """Prints the search and every data problem, writes nothing. The exit code: 2 where there are data problems."""
    plan = driver.prepare_dry(request, console)
    if plan is None:
        return driver.USER_ERROR
    _show(plan, request, console)
    console.print("dry run: nothing was trained and nothing written", highlight=False)
    return 0


def tune(request: Request, console: Console) -> int:
    """Trains the configurations that are missing and writes what was found. The exit code: 0, 1 (a trial failed), 2,
    130.

    UserError as `bench.run.run`, and where the folder holds another search for this method.
    """
    return driver.until_stopped(_tune, request, console)


def _tune(request: Request, console: Console) -> int:
    plan = driver.prepare(request, console)
    if plan is None:
        return driver.USER_ERROR
    with driver.alone(plan, request):
        searches = _searches(plan)
        budget = _budget(plan, request)
        for specs in searches:
            _begin(specs, budget, plan.folder)
        todo = _show(plan, request, console)
        write_suite(plan, request)
        assert plan.splits is not None
        sides = {"train": plan.splits.train, "val": plan.splits.val}
        write_text(plan.folder / SAMPLES, SIDES.dump_json(sides).decode())
        with driver.tracking(plan, request) as (uri, parent):
            with stoppable(plan.folder):
                driver.train(plan, request, todo, console, uri, parent, fit_configuration)
            if parent is not None:
                publish_rest(plan.folder, plan.specs, driver.store(request), parent.run_id)
            failed = driver.failures(plan, console)
            files, without = [], []
            for specs in searches:
                if set(specs) & set(failed):
                    continue
                try:
                    tuned = found(specs, plan.choice.profile.recipe, plan.folder, budget)
                except UserError as error:
                    without.append(str(error))
                    continue
                files.append(tuned.save(plan.folder))
                console.print(result_table(tuned))
                console.print(f"best     {in_words(tuned.best)}, in {files[-1]}", highlight=False, soft_wrap=True)
            if parent is not None:
                parent.artifacts(*files, plan.folder / "suite.json")
                parent.finish("FAILED" if failed or without else "FINISHED")
        driver.send_to_storage(plan, request)
    if without:
        raise UserError("; ".join(without))
    return driver.exit_code(plan, failed)


def methods_of(text: str, suite: str) -> tuple[str, ...]:
    """ "sam, seem" -> their names, "all" -> those of the suite that the shared recipe trains. UserError for others."""
    from bench.errors import unknown_name
    from bench.methods import METHODS

    tunable = [name for name, entry in METHODS.items() if entry.uses_backbone]
    if text == "all":
        return tuple(name for name in SUITES[suite].methods if name in tunable) if suite in SUITES else ()
    asked = names(text) or ()
    for method in asked:
        if method not in METHODS:
            raise unknown_name("method", method, [*tunable, "all"])
        if method not in tunable:
            raise UserError(f"{method} has no share in the recipe that is tuned: name some of {', '.join(tunable)}")
    if not asked:
        raise UserError(f"no method is named: write some of {', '.join(tunable)}, or all")
    return asked


def found(specs: Sequence[RunSpec], recipe: Recipe, folder: Path, budget: Budget) -> Tuned:
    """The result of a search whose trials, `specs`, have all ended; `recipe` is the profile's. UserError where all
    diverged.
    """
    from bench.environment import package_versions

    trials = tuple(trial_of(spec, folder, budget) for spec in specs)
    # one that diverged would do so again, whatever it had reached before
    losses = [math.inf if trial.val_loss is None or trial.outcome == "diverged" else trial.val_loss for trial in trials]
    lowest = min(range(len(trials)), key=losses.__getitem__)
    if not math.isfinite(losses[lowest]):
        raise UserError(f"every configuration of {specs[0].method} diverged: name lower rates with --space lr=...")
    base = specs[0].model_copy(update={"recipe": recipe, "variant": None})
    return Tuned(
        base=base, budget=budget, best=trials[lowest].configuration, trials=trials, versions=package_versions()
    )


def trial_of(spec: RunSpec, folder: Path, budget: Budget) -> Trial:
    """What the run folder says of a configuration that has ended."""
    curve = validations(folder / spec.run_id)
    known = [(loss, step, dice) for step, loss, dice in curve if loss is not None]
    loss, best_step, dice = min(known) if known else (None, None, None)
    fields = parse_space(budget.space)
    return Trial(
        run=spec.run_id,
        configuration={name: getattr(spec.recipe, name) for name in fields},
        outcome=run_state(folder / spec.run_id)["fit"]["outcome"],
        steps=curve[-1][0] if curve else 0,
        val_loss=loss,
        val_dice=dice,
        best_step=best_step,
        curve=tuple(curve),
    )


def result_table(tuned: Tuned) -> Table:
    """The configurations, the best first."""
    from bench.terminal import text_table

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    ordered = sorted(tuned.trials, key=lambda trial: math.inf if trial.val_loss is None else trial.val_loss)
    rows = [
        [
            in_words(trial.configuration),
            number(trial.val_loss, ".4f"),
            number(trial.val_dice and 100 * trial.val_dice, ".1f"),
            str(trial.steps),
            trial.outcome,
        ]
        for trial in ordered
    ]
    table = text_table(["configuration", "validation loss", "validation Dice, %", "steps", "outcome"], rows)
    table.title = f"{tuned.base.method} {tuned.base.backbone}: {tuned.budget}"
    return table


def _budget(plan: Plan, request: Request) -> Budget:
    profile = plan.choice.profile
    space = space_of(request.space or (), profile)
    count = len(plan.specs) // len(_searches(plan))
    return Budget(
        space=space_texts(space),
        configurations=count,
        steps=profile.recipe.steps,
        rungs=rungs(profile.recipe) if request.stopping else (),
    )


def _searches(plan: Plan) -> list[list[RunSpec]]:
    """The configurations of each method and backbone."""
    searches: dict[tuple[str, str], list[RunSpec]] = {}
    for spec in plan.specs:
        searches.setdefault((spec.method, spec.backbone), []).append(spec)
    return list(searches.values())


def _begin(specs: Sequence[RunSpec], budget: Budget, folder: Path) -> None:
    """Writes what the trials of a search have to know. UserError where the folder holds another search for the method:
    one file, one search. The same one with nothing stopped is no other: it goes on.
    """
    method, backbone = specs[0].method, specs[0].backbone
    file = folder / SEARCH.format(method, backbone)
    search = {"budget": budget.model_dump(mode="json"), "runs": [spec.run_id for spec in specs]}
    with_rungs = search | {"budget": search["budget"] | {"rungs": list(rungs(specs[0].recipe))}}
    known = [search] if budget.rungs else [search, with_rungs]
    if file.exists() and read_json(file, "remove it") not in known:
        raise UserError(
            f"{file} is another search for {method} (space, trials, seed, recipe or --no-stopping): choose another "
            f"--name, or remove {folder}"
        )
    write_json(file, search)


def _show(plan: Plan, request: Request, console: Console) -> list[RunSpec]:
    """Prints the search; the configurations that have not ended."""
    budget = _budget(plan, request)
    todo = [spec for spec in plan.specs if not _has_ended(spec, plan.folder, budget)]
    show(plan, console, todo, request.executor)
    text = f"search   {budget}: of {' '.join(budget.space)}"
    if budget.rungs:
        steps = " and ".join(map(str, budget.rungs))
        text += f"; about a third goes on at steps {steps}, so the estimate is the most it can take"
    console.print(text, highlight=False, soft_wrap=True)
    return todo


def _has_ended(spec: RunSpec, folder: Path, budget: Budget) -> bool:
    status = run_state(folder / spec.run_id)
    if status["state"] != "finished" or status.get("spec_hash") != spec.hash:
        return False
    return bool(budget.rungs) or status["fit"]["outcome"] != "stopped"
