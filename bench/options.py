"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import UserError

RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder of all runs.", metavar="DIR")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="A data set folder in the BiomedParse layout, or a folder of such; may be repeated. A URL (s3://, "
        "gs://, whatever fsspec reads) is copied under the runs folder first. Without it the phantom is "
        "generated; phantom-easy and phantom-hard are names of two others.",
        metavar="DIR|URL|NAME",
    ),
]
Profile = Annotated[str | None, typer.Option(help="The scale; default: chosen from the hardware.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Another value of a field of the profile: of its recipe (steps=900, learning_rate=5e-4, batch_images=8), "
        "model.width, nnunet.epochs, phantom.test_patients, cpus_per_trial, ...; may be repeated.",
        metavar="FIELD=VALUE",
    ),
]
Backbones = Annotated[
    str | None, typer.Option(help="Backbones instead of the profile's, e.g. hiera_s,focal_l.", metavar="A,B")
]
Seeds = Annotated[
    str | None, typer.Option(help="Seeds, e.g. 0,1,2: all trials of the first come before the next.", metavar="0,1")
]
Name = Annotated[
    str | None, typer.Option(help="Folder under runs/; default: the suite, with --data also the data sets' names.")
]
BackboneWeights = Annotated[
    str | None,
    typer.Option(
        help="Published weights to start from: a file (SAM 2, X-Decoder, SEEM, BoltzFormer, timm), or a name on "
        "the Hugging Face hub such as facebook/sam2-hiera-small. Default: random weights.",
        metavar="FILE|NAME",
    ),
]
Splits = Annotated[
    Path | None, typer.Option(help="A splits.json of `bench data split`, instead of --data.", metavar="FILE")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print plan, data problems and estimate; train nothing.")]


class Executor(StrEnum):
    """Who runs the trials."""

    ray = "ray"
    local = "local"


Address = Annotated[
    str | None,
    typer.Option(
        help="Run the trials on the Ray cluster that is there (docs/cluster.md): auto on one of its machines, or "
        "HOST:PORT of its head. Default: this machine.",
        metavar="auto|HOST:PORT",
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Where machines that share no folder exchange the suite's files: s3://, gs://, any URL of fsspec. "
        "--runs-dir stays local and is brought up to date; on another machine the same command goes on, one command "
        "at a time. Credentials come from the environment.",
        metavar="URL",
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        help="MLflow's server, such as http://mlflow:5000. Default: MLFLOW_TRACKING_URI, else a SQLite file under the "
        "runs folder. User name and password come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
        metavar="URI",
    ),
]
ExecutorChoice = Annotated[Executor, typer.Option(help="ray: trials side by side; local: one by one here.")]


def names(text: str | None) -> tuple[str, ...] | None:
    """ "a, b" -> ("a", "b")."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def whole_numbers(option: str, text: str, example: str) -> tuple[int, ...]:
    """ "0,1" -> (0, 1); UserError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text!r} is no list of whole numbers: write e.g. {option} {example}") from None


def seed_numbers(text: str | None) -> tuple[int, ...] | None:
    """The numbers of --seeds; UserError where one is negative, or has more than 32 bits."""
    if text is None:
        return None
    seeds = whole_numbers("--seeds", text, "0,1,2")
    if min(seeds) < 0:
        raise UserError(f"--seeds {text!r}: a seed is not negative")
    if max(seeds) >= 2**32:
        raise UserError(f"--seeds {text!r}: a seed is less than 2 to the power of 32")
    return seeds
