"""`bench profile`: what the sampled attention saves, and where a trial's time goes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench import options
from bench.options import RunsDir
from bench.terminal import terminal_console


class Scope(StrEnum):
    """What `bench profile` measures."""

    attention = "attention"
    decoder = "decoder"
    model = "model"
    harness = "harness"


def profile(
    scope: Annotated[Scope | None, typer.Argument(help="Only this; default: all four.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: profile in the runs folder.", metavar="DIR")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A first impression in a minute and a half.")] = False,
    threads: Annotated[
        str | None,
        typer.Option(
            help="Numbers of threads; default: 1 and all cores (attention), all (decoder, model), 1 (harness).",
            metavar="1,2",
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Measure what the sampled attention saves: GFLOP, seconds and memory against the plain path.

    \b
    attention  one cross-attention layer: every exact form, 32 x 32 to 256 x 256 tokens
    decoder    from image features, S and text tokens to mask logits; SEEM, SAM, SAM 2 and full attention too
    model      whole Hiera-S models: one prompt, 15 prompts on one image, part by part
    harness    a whole trial of the laptop profile: the share of its time that is not the network's; and its training
               step: prompts of an image together or singly

    The plain path is the authors' way: keys and values of all tokens, a boolean mask, attention weights returned, S
    and all candidate masks made whole, and the image features computed anew for each prompt. Weights are random and
    full-size (harness: the laptop profile's).

    What is compared is run by turns (A B C A B C) after two calls to warm up; seconds are medians, a speedup is the
    plain path's median over its own. GFLOP are counted by torch: matrix products and convolutions. peak_mib is how
    far one call lifts the resident memory of the process at its peak, as Linux records it (on a GPU: torch's allocated
    memory; elsewhere empty). Paths that do the same work whatever is sampled are measured once and listed at each
    sampling.

    Writes profile.csv, profile.png and env.json, and logs them as an MLflow run. It ends with the bars that were
    measured. All of it takes about half an hour on two cores, which should have nothing else to do.

    \b
    Examples:
      bench profile --quick
      bench profile attention --threads 1
      bench profile model --out profile-of-this-machine
    """
    from bench.profiling import run as profiling

    scopes = [kind.value for kind in ([scope] if scope else Scope)]
    counts = None if threads is None else tuple(sorted(set(options.whole_numbers("--threads", threads, "1,2"))))
    raise typer.Exit(
        profiling.profile(scopes, out or runs_dir / "profile", quick, counts, runs_dir, terminal_console())
    )
