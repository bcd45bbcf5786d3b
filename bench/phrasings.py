"""Asks trained models for their test masks in other words: `bench phrasings`.

A comparison asks for every test mask once, by the first phrasing of its target, and its tables stay so. The other
phrasings are asked here, of runs that have ended, and their records kept in a file of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.data.dataset import load_mask
from bench.data.splits import load_splits
from bench.errors import UserError
from bench.execute import record_of, run_state
from bench.interface import Sample
from bench.locks import locked
from bench.methods import METHODS
from bench.predict_image import load_segmenter, segmenter_spec
from bench.records import PHRASINGS_FILE, RECORD_COLUMNS, write_table
from bench.suite_folder import read_spec, read_suite
from bench.terminal import BarLog

if TYPE_CHECKING:
    from bench.spec import RunSpec

TOGETHER = 16  # prompts of an image at most in one pass: an image of 15 organs in six phrasings has 75


@dataclass(frozen=True)
class Asked:
    """What `ask_phrasings` did: the runs it asked, those that had been, and the others with the reason; how many
    further phrasings the test masks have in all.
    """

    folder: Path
    runs: tuple[str, ...]
    earlier: tuple[str, ...]
    left_out: dict[str, str]
    prompts: int


def ask_phrasings(folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Asked:
    """Predicts every test mask of a suite folder by each further phrasing, with every trained model that has not been
    asked yet, and writes their records to phrasings.parquet of the run.

    `on_progress` gets (done, total) passes. Raises UserError where no mask has a second phrasing, no run can be
    asked, or the data have changed.
    """
    with locked(folder):
        file = folder / "splits.json"  # not there where all rows are published ones
        samples = [part for sample in load_splits(file).test for part in reworded(sample)] if file.is_file() else []
        if not samples:
            raise UserError(
                f"no test mask of {folder} has a second phrasing: give its annotation in test.json further 'sentences' "
                "and run the suite again"
            )
        todo, earlier, left_out = _choose(folder)
        if not todo and not earlier:
            reasons = "; ".join(f"{run_id} {reason}" for run_id, reason in left_out.items())
            raise UserError(f"{folder} has no run that can be asked: {reasons or 'it is empty'}")
        for number, (run_dir, spec) in enumerate(todo):
            _ask(run_dir, spec, samples, BarLog(on_progress, number, len(todo)))
        prompts = sum(len(sample.targets) for sample in samples)
        return Asked(folder, tuple(run_dir.name for run_dir, _ in todo), tuple(earlier), left_out, prompts)


def reworded(sample: Sample) -> Iterator[Sample]:
    """The sample with a target for each further phrasing of its targets, in parts of at most TOGETHER."""
    targets = [
        replace(target, prompts=(phrase,))
        for target in sample.targets
        for phrase in dict.fromkeys(target.prompts)
        if phrase != target.prompts[0]
    ]
    for start in range(0, len(targets), TOGETHER):
        yield replace(sample, targets=tuple(targets[start : start + TOGETHER]))


def _ask(run_dir: Path, spec: RunSpec, samples: list[Sample], log: BarLog) -> None:
    from bench.environment import seed_everything

    seed_everything(spec.seed)
    method = load_segmenter(spec, run_dir)
    records = [
        record_of(spec, prediction, load_mask(prediction.target.mask_file))
        for prediction in method.predict(samples, log)
    ]
    write_table(records, run_dir / PHRASINGS_FILE, RECORD_COLUMNS)


def _choose(folder: Path) -> tuple[list[tuple[Path, RunSpec]], list[str], dict[str, str]]:
    """The runs to ask, those that have been asked, and why the others cannot be."""
    todo, earlier, left_out = [], [], {}
    for run_id in read_suite(folder)["runs"]:
        run_dir = folder / run_id
        if (run_dir / PHRASINGS_FILE).is_file():
            earlier.append(run_id)
        elif (state := run_state(run_dir)["state"]) != "finished":
            left_out[run_id] = f"is {state}"
        elif not _reads_prompts(run_dir):
            left_out[run_id] = "reads no prompt, or was not trained here"
        else:
            todo.append((run_dir, segmenter_spec(run_dir)))
    return todo, earlier, left_out


def _reads_prompts(run_dir: Path) -> bool:
    spec = read_spec(run_dir)
    entry = METHODS.get(spec.method)
    return entry is not None and entry.uses_backbone and spec.origin is None
