"""`bench tune`: learning rate and weight decay of a decoder, by validation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench import options
from bench.errors import UserError
from bench.terminal import terminal_console


def tune(
    methods: Annotated[
        str,
        typer.Argument(
            help="Those that share the recipe, e.g. boltzformer,sam; all of the suite's by 'all'.",
            metavar="METHODS",
            show_default=False,
        ),
    ],
    suite: Annotated[str, typer.Option(help="The suite whose data and scale are used: main or smoke.")] = "main",
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="What is searched, a field each: lr=1e-4,1e-3 or lr=log:1e-5..1e-3 (with --trials) of learning_rate "
            "(lr), weight_decay, warmup_steps, clip_norm, beta2. Or paper, the grid of A.4. Default: the profile's.",
            metavar="FIELD=VALUES",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="So many configurations, drawn at random; default: all of a grid.", metavar="N")
    ] = None,
    stopping: Annotated[
        bool,
        typer.Option(
            "--stopping/--no-stopping",
            help="Stop configurations that do badly, or train all to the end; what had been stopped is trained again.",
        ),
    ] = True,
    data: options.Data = None,
    profile: options.Profile = None,
    changes: options.Set = None,
    backbones: options.Backbones = None,
    seed: Annotated[int, typer.Option(help="Of the trainings and of the order of configurations.", min=0)] = 0,
    executor: options.ExecutorChoice = options.Executor.ray,
    address: options.Address = None,
    storage: options.Storage = None,
    tracking_uri: options.TrackingUri = None,
    name: Annotated[
        str | None, typer.Option(help="Folder under runs/; default: the suite, tune and the data sets' names.")
    ] = None,
    backbone_weights: options.BackboneWeights = None,
    splits: options.Splits = None,
    runs_dir: options.RunsDir = Path("runs"),
    dry_run: options.DryRun = False,
) -> None:
    """Search learning rate and weight decay of METHODS on validation; `bench run --tuned` then uses what was found.

    The test split is not seen: a configuration is trained on train and judged by its lowest validation loss. At the
    validations next to a ninth and a third of the steps about the best third goes on and the others stop (ASHA, by the
    configurations that came so far before). Side by side, which ones stop depends on which are faster; --executor local
    repeats. Low learning rates look better early than at the end: of few configurations train all to the end
    (--no-stopping).

    \b
    The grid of the paper's A.4 (profiles gpu and paper, or --space paper):
      learning rate 2e-5, 4e-5, 5e-5, 1e-4; weight decay 1e-4, 1e-3, 1e-2
    Those rates are for large pre-trained models; the grid of the profiles laptop and smoke, which train small ones from
    random weights in few steps:
      learning rate 1e-4, 2e-4, 4e-4, 8e-4; weight decay 1e-4, 1e-3, 1e-2

    Writes tuned-METHOD-BACKBONE.json with every configuration and its curve of each method. Stop it at any time: the
    same command goes on. Give every method of a comparison the same search: `bench run --tuned` refuses others.

    \b
    Examples:
      bench tune boltzformer
      bench tune all --space lr=1e-4,3e-4,1e-3 --no-stopping --data data/openkbp
      bench tune sam,seem --space lr=1e-4,1e-3 --space weight_decay=0.01
      bench tune seem --space lr=log:1e-4..1e-2 --trials 8 --data data/openkbp --dry-run
      bench run --suite main --methods boltzformer,sam --tuned
    """
    from bench import tune as driver
    from bench.plan import Request

    if seed >= 2**32:
        raise UserError(f"--seed {seed}: a seed is less than 2 to the power of 32")
    request = Request(
        suite=suite,
        data=tuple(data or ()),
        profile=profile,
        changes=tuple(changes or ()),
        methods=driver.methods_of(methods, suite),
        backbones=options.names(backbones),
        seeds=(seed,),
        executor=executor.value,
        address=address,
        storage=storage,
        tracking_uri=tracking_uri,
        name=name,
        runs_dir=runs_dir,
        backbone_weights=backbone_weights,
        splits=splits,
        space=tuple(space or ()),
        trials=trials,
        stopping=stopping,
    )
    work = driver.dry_run if dry_run else driver.tune
    raise typer.Exit(work(request, terminal_console()))
