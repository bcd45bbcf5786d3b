"""Trials side by side against one after the other: wall seconds of the whole command, by turns, on free cores.

    python tests/benchmarks/parallel_trials.py
    python tests/benchmarks/parallel_trials.py --suite smoke --methods boltzformer,seem,sam,sam2

`--executor local` gives a trial all cores (threads), Ray a core to each trial.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

WAYS = ("local", "ray")


def main(
    suite: Annotated[str, typer.Option(help="Of `bench run`.")] = "main",
    methods: Annotated[str, typer.Option(help="The trials.", metavar="A,B")] = "boltzformer,seem",
    profile: Annotated[str | None, typer.Option(help="Default: the suite's, or by the hardware.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each way has its turn.", min=1)] = 1,
) -> None:
    """Print the seconds of both ways and their ratio."""
    words = ["run", "--suite", suite, "--methods", methods, *(["--profile", profile] if profile else [])]
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        bench(*words, "--methods", "location_prior", "--runs-dir", Path(folder) / "phantom")  # makes the phantom
        (data,) = (path for path in Path(folder).glob("phantom/data/*") if path.is_dir())
        for number in range(rounds):
            for way in WAYS:
                start = time.perf_counter()
                bench(*words, "--data", data, "--executor", way, "--runs-dir", Path(folder) / f"{way}-{number}")
                seconds[way].append(time.perf_counter() - start)
                print(f"round {number + 1}, {way}: {seconds[way][-1]:.0f} s", flush=True)
    local, ray = (median(seconds[way]) for way in WAYS)
    print(f"{methods}: one after the other {local:.0f} s, side by side {ray:.0f} s: {local / ray:.2f} x as fast")


def bench(*words: object) -> None:
    """The command line, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "bench", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])


if __name__ == "__main__":
    typer.run(main)
