"""The plan of a suite for the terminal: profile, data, trials with their estimates, data problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.estimate import Workload, estimate, estimate_suite, format_seconds, is_guess, lanes, workers_of
from bench.plan import Plan, phantom_objects
from bench.spec import RunSpec
from bench.write_suite import leaving

if TYPE_CHECKING:
    from rich.console import Console

    from bench.data.check import Problem
    from bench.data.splits import Splits

SHOWN_PROBLEMS = 20  # of one kind in one data set


def budget(spec: RunSpec, work: Workload) -> str:
    """What a trial is given, in words."""
    from bench.methods import METHODS

    if METHODS[spec.method].needs_weights:
        return "pre-trained, not trained here"
    if spec.recipe is not None:
        recipe = spec.recipe
        epochs = recipe.steps * recipe.batch_images / max(1, work.train_images)
        count = f"{epochs:.{0 if epochs >= 10 else 1}f} epochs"
        return f"{recipe.steps} steps x {recipe.batch_images} images ({count}), {recipe.image_size} px"
    if spec.nnunet is not None:
        own = spec.nnunet
        iterations = own.epochs * own.iterations_per_epoch
        experts, name = len(work.experts), "experts"
        if spec.method == "nnunet_multiclass":
            experts, name = len({dataset for dataset, _ in work.experts}), "multi-class models"
        return f"{experts} {name} x {iterations} iterations, batch {own.batch_size or 'planned'}"
    return "one pass over the training masks"


def show_first(plan: Plan, console: Console) -> None:
    """What is known before the phantom is generated: the profile, why, and how long all of it takes."""
    from bench.methods import why_not_run

    choice = plan.choice
    todo = [spec for spec in plan.specs if not why_not_run(spec)]
    seconds = estimate_suite(todo, plan.work, choice.profile, choice.hardware)
    console.print(
        f"profile {choice.profile.name} ({choice.reason}): about {format_seconds(seconds)} (estimate); "
        "first the phantom is generated",
        highlight=False,
    )


def show(plan: Plan, console: Console, todo: Sequence[RunSpec], executor: str) -> None:
    """Prints profile and why, data sets, split hash, trials with budget and estimate; `todo` is what is
    missing.
    """
    from rich import box
    from rich.table import Table

    from bench.methods import why_not_run

    choice = plan.choice
    console.print(f"[bold]{choice.suite.title}[/] (suite {choice.suite.name})", highlight=False)
    console.print(f"profile  {choice.profile.name}: {choice.profile.title} ({choice.reason})", highlight=False)
    console.print(f"machine  {choice.hardware}", highlight=False)
    workers = 1 if executor == "local" else workers_of(choice.profile, choice.hardware)
    if (asked := choice.profile.workers_per_trial) > 1:
        fewer = f" of the profile's {asked}: each takes more of the same batch, one after the other"
        console.print(
            f"workers  {workers} train each trial{fewer if workers < asked else ''}", highlight=False, soft_wrap=True
        )
    if plan.weights is not None:
        console.print(f"weights  {plan.weights.summary}", highlight=False, markup=False)
    for method, file in plan.own_weights.items():
        console.print(f"weights  of {method}: {file.summary}", highlight=False, markup=False)
    if choice.profile.gpus_per_trial and not choice.hardware.gpus:
        console.print("[yellow]this profile is meant for GPUs and none is here: it will be very slow[/]")
    if plan.splits is None:
        size = choice.profile.phantom
        console.print(
            f"data     {choice.phantom}, to be generated: {len(phantom_objects(choice.profile))} data sets of "
            f"{size.patients} + {size.test_patients} patients with {size.slices} slices, {size.image_size}px",
            highlight=False,
        )
    else:
        console.print(f"data     {'phantom' if plan.splits.phantom else 'real images'}, split {plan.split_hash}")
        console.print(_data_table(plan.splits))
    table = Table(box=box.SIMPLE_HEAD, title="trials", title_justify="left")
    for header in ("method", "backbone", "seed", "budget"):
        table.add_column(header)
    table.add_column("estimate", justify="right")
    waiting = {spec.run_id for spec in todo}
    for spec in plan.specs:
        seconds = estimate(spec, plan.work, choice.hardware, workers)
        note = format_seconds(seconds) if spec.run_id in waiting else "finished"
        note = "-" if why_not_run(spec) else note
        table.add_row(spec.row, spec.backbone, str(spec.seed), budget(spec, plan.work), note)
    console.print(table)
    show_left_out(plan, console)
    count = lanes(choice.profile, choice.hardware)
    total = estimate_suite(todo, plan.work, choice.profile, choice.hardware)
    console.print(
        f"{len(todo)} of {len(plan.specs)} trials to run, {count} side by side: about "
        f"[bold]{format_seconds(total)}[/] (estimate)",
        highlight=False,
    )
    if any(is_guess(spec, choice.hardware) for spec in todo):
        told = "a guess: costs were measured on a CPU with the laptop profile's models (--measure measures others)"
        console.print(f"         {told}", highlight=False)
    if gone := leaving(plan):
        runs = f"{len(gone)} finished run{'s' * (len(gone) > 1)} of another recipe, model or budget"
        fix = "a suite has one of each; to keep them in its tables, give this one another --name"
        console.print(f"[yellow]leaving[/]  {runs}: {fix}: {', '.join(gone)}", highlight=False, soft_wrap=True)


def show_left_out(plan: Plan, console: Console) -> None:
    """Prints a line for each method that there is nothing to run for, with the reason and the fix."""
    from bench.methods import why_not_run

    for row, reason in dict.fromkeys((spec.row, why_not_run(spec)) for spec in plan.specs):
        if reason:
            console.print(f"not run  {row}: {reason}", highlight=False, markup=False)


def _data_table(splits: Splits):
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("data set")
    for part in ("train", "validation", "test"):
        table.add_column(f"{part}\nimages / targets / patients", justify="right")
    parts = (splits.train, splits.val, splits.test)
    for dataset in splits.roots:
        cells = []
        for part in parts:
            samples = [sample for sample in part if sample.dataset == dataset]
            targets = sum(len(sample.targets) for sample in samples)
            cells.append(f"{len(samples)} / {targets} / {len({sample.patient for sample in samples})}")
        table.add_row(dataset, *cells)
    return table


def show_problems(problems: Sequence[Problem], console: Console) -> None:
    """Data problems as one table, of each kind in each data set the first ones."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{len(problems)} data problem{'s' * (len(problems) != 1)}", title_justify="left")
    for header in ("data set", "file", "problem", "fix"):
        table.add_column(header, overflow="fold")
    counts: Counter[tuple[str, str]] = Counter()
    for problem in problems:
        counts[problem.dataset, problem.kind] += 1
        if counts[problem.dataset, problem.kind] > SHOWN_PROBLEMS:
            continue
        # below the data set's folder: a whole path would be folded over several lines
        file = problem.file.split(f"/{problem.dataset}/")[-1]
        table.add_row(*(escape(part) for part in (problem.dataset, file, problem.problem, problem.fix)))
    for (dataset, kind), count in counts.items():
        if count > SHOWN_PROBLEMS:
            table.add_row(
                escape(dataset), f"and {count - SHOWN_PROBLEMS:,} more", kind, "`bench data check --json FILE`"
            )
    console.print(table)
