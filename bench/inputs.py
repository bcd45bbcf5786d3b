"""What a plan is made from: data sets, the phantom where there are none, weights, with all their problems told."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import UserError
from bench.locks import lock_file
from bench.plan import Choice, Request, phantom_folder
from bench.show_plan import show_problems
from bench.weights import WeightsFile, find_own_weights, find_weights

if TYPE_CHECKING:
    from rich.console import Console

    from bench.data.dataset import Dataset


def generated_phantom(request: Request, choice: Choice, console: Console) -> list[Path]:
    """The phantom's data set folders; generated where they are not there yet."""
    from bench.data.phantom import PHANTOMS, generate
    from bench.terminal import progress_bar

    folder = phantom_folder(request, choice)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("a") as lock:
        lock_file(lock)  # a second run waits, and then finds it there
        for left in folder.parent.glob(f".{folder.name}-*"):  # by one that was killed
            shutil.rmtree(left, ignore_errors=True)
        with progress_bar(console, "generating the phantom") as on_progress:
            return generate(
                folder,
                choice.profile.phantom,
                choice.profile.objects,
                on_progress=on_progress,
                difficulty=PHANTOMS[choice.phantom],
            )


def load(request: Request, folders: Sequence[Path]) -> list[Dataset]:
    """The data sets; UserError where one cannot be read, or has patients on both sides that nobody has settled."""
    from bench.data.dataset import load_dataset

    # whoever wrote a splits.json has settled what to do with patients on both sides
    return [load_dataset(folder, allow_leaks=request.splits is not None) for folder in folders]


def preflight(
    request: Request, choice: Choice, folders: Sequence[Path], console: Console
) -> tuple[bool, WeightsFile | None, dict[str, WeightsFile]]:
    """Looks at data sets and weights, so that all their problems are told at once: whether all is sound, the weights of
    what the decoders share, and those of single methods.
    """
    broken = _report_problems(folders, console, request.splits is not None)
    try:
        weights = None if request.backbone_weights is None else find_weights(request.backbone_weights, choice)
        return not broken, weights, find_own_weights(request.weights, choice)
    except UserError as error:
        if not broken:
            raise
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return False, None, {}


def _report_problems(folders: Sequence[Path], console: Console, leaks_settled: bool) -> bool:
    """Shows every data problem; whether one of them stops the run."""
    from bench.data.check import check_datasets
    from bench.data.dataset import LEAKS

    problems = [p for p in check_datasets(folders) if not (leaks_settled and p.kind in LEAKS)]
    fatal = any(problem.fatal for problem in problems)
    if problems:
        show_problems(problems, console)
        if not fatal:
            console.print("none of these stops the run", highlight=False)
    return fatal
