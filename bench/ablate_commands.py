"""`bench ablate`: what each part of BoltzFormer is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench import options
from bench.errors import UserError, unknown_name
from bench.terminal import terminal_console

ALL = "all"


def ablate(
    name: Annotated[
        str,
        typer.Argument(
            help="attention, temperature, samples, queries, prior, pigma (the paper's Tables 3 to 8), annealing, "
            "layers, size, or all.",
            metavar="NAME",
            show_default=False,
        ),
    ],
    values: Annotated[
        str | None,
        typer.Option(
            help="Other values than the paper's and ours, e.g. 0.1,1,4; the profile's own is always added.",
            metavar="A,B",
        ),
    ] = None,
    suite: Annotated[
        str, typer.Option(help="The scale: smoke, or main for the profile that the hardware allows.")
    ] = "main",
    data: options.Data = None,
    profile: options.Profile = None,
    changes: options.Set = None,
    backbones: options.Backbones = None,
    seeds: options.Seeds = None,
    executor: options.ExecutorChoice = options.Executor.ray,
    address: options.Address = None,
    storage: options.Storage = None,
    tracking_uri: options.TrackingUri = None,
    name_of_run: Annotated[
        str | None, typer.Option("--name", help="Folder under runs/; default: ablate and the data sets' names.")
    ] = None,
    backbone_weights: options.BackboneWeights = None,
    splits: options.Splits = None,
    runs_dir: options.RunsDir = Path("runs"),
    dry_run: options.DryRun = False,
) -> None:
    """Train BoltzFormer with one of its parts changed, and write the table and figure with the paper's beside ours.

    One field changes at a time, everything else is the profile's. All ablations share a folder and in it the run of the
    profile's own values, so that the next one costs only what is new. Stop it at any time: the same command goes on.
    Writes ablation_NAME.md, .csv, .tex, .png and .svg into the report.

    \b
    Examples:
      bench ablate temperature
      bench ablate temperature --values 0.1,1,4
      bench ablate all --suite smoke
      bench ablate attention --data data/openkbp --seeds 0,1,2 --dry-run
    """
    from bench import run as driver
    from bench.plan import Request
    from experiments.ablations import ABLATIONS

    if name != ALL and name not in ABLATIONS:
        raise unknown_name("ablation", name, [*ABLATIONS, ALL])
    if name == ALL and values is not None:
        raise UserError(f"--values goes with one ablation: name it instead of {ALL}")
    request = Request(
        suite=suite,
        data=tuple(data or ()),
        profile=profile,
        changes=tuple(changes or ()),
        backbones=options.names(backbones),
        seeds=options.seed_numbers(seeds),
        executor=executor.value,
        address=address,
        storage=storage,
        tracking_uri=tracking_uri,
        name=name_of_run,
        runs_dir=runs_dir,
        backbone_weights=backbone_weights,
        splits=splits,
        ablations=tuple(ABLATIONS) if name == ALL else (name,),
        values=options.names(values),
    )
    work = driver.dry_run if dry_run else driver.run
    raise typer.Exit(work(request, terminal_console()))
