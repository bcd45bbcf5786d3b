"""What `bench tune` found: a file for each method and backbone in the folder of the search, and the recipes made of it.

tuned-<method>-<backbone>.json holds everything of a search. `bench run --tuned` takes its best configuration, after it
has seen that the search was of the same data, model and recipe, and that every method was given the same search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from bench.atomic import read_json, write_json
from bench.errors import UserError
from bench.search import TUNABLE
from bench.spec import Frozen, Recipe, RunSpec
from bench.suite_folder import first_fault

TUNED = "tuned-{}-{}.json"  # method, backbone
AGAIN = "run `bench tune` again"


class Budget(Frozen):
    """What a method was given; the same for all of a comparison."""

    space: tuple[str, ...]  # as `bench.search.parse_space` reads it
    configurations: int
    steps: int  # of a configuration that is not stopped
    rungs: tuple[int, ...]  # steps at which it may be; none where all are trained to the end

    def __str__(self) -> str:
        """For tables."""
        return f"{self.configurations} configurations x {self.steps} steps, {'ASHA' if self.rungs else 'none stopped'}"


class Trial(Frozen):
    """A configuration and what became of it. The loss is the lowest of validation, None where there is none; `curve`
    has (step, loss, Dice in 0..1) of each validation.
    """

    run: str  # its folder
    configuration: dict[str, int | float]
    outcome: Literal["trained", "stopped", "diverged"]
    steps: int
    val_loss: float | None
    val_dice: float | None
    best_step: int | None
    curve: tuple[tuple[int, float | None, float | None], ...]


class Tuned(Frozen):
    """A whole search. `base` is the spec that the configurations were put into; its seed is that of the order, too."""

    format: Literal[1] = 1
    base: RunSpec
    budget: Budget
    best: dict[str, int | float]
    trials: tuple[Trial, ...]  # in the order in which they were begun
    versions: dict[str, str]

    def save(self, folder: Path) -> Path:
        """Writes the file, whole or not at all; its path."""
        file = folder / TUNED.format(self.base.method, self.base.backbone)
        write_json(file, self.model_dump(mode="json"))
        return file


def read_tuned(folder: Path) -> dict[tuple[str, str], Tuned]:
    """The searches in `folder` that have ended, by method and backbone. UserError for none, or a broken one."""
    found = {}
    for file in sorted(folder.glob(TUNED.format("*", "*"))):
        try:
            tuned = Tuned.model_validate(read_json(file, AGAIN))
            if tuned.base.recipe is not None:
                with_tuning(tuned.base, tuned)
        except ValidationError as error:
            raise UserError(f"{file} is no result of `bench tune`: it {first_fault(error)}: {AGAIN}") from None
        if other := set(tuned.best) - set(TUNABLE):
            raise UserError(f"{file} would change {min(other)}, which is not tuned: {AGAIN}")
        found[tuned.base.method, tuned.base.backbone] = tuned
    if not found:
        raise UserError(
            f"{folder} holds no tuned-*.json: run `bench tune METHOD` first, or name its folder with --tuned-from"
        )
    return found


def tuned_specs(specs: Sequence[RunSpec], found: Mapping[tuple[str, str], Tuned], folder: Path) -> list[RunSpec]:
    """The specs with the recipes that were `found` in `folder`; those that share no recipe stay as they are.

    UserError where one has none, was tuned on another split, model or recipe, or with another budget than the others.
    """
    used = {}
    for spec in specs:
        if spec.recipe is None:
            continue
        key = (spec.method, spec.backbone)
        if key not in found:
            raise UserError(
                f"{folder} has nothing for {spec.method} with {spec.backbone}: run `bench tune {spec.method}` with the "
                "same options, or leave it out with --methods"
            )
        if differs := _difference(spec, found[key].base):
            raise UserError(f"{folder / TUNED.format(*key)} was tuned with another {differs}: {AGAIN} on these data")
        used[" ".join(key)] = found[key].budget
    first = next(iter(used), None)
    for name, budget in used.items():
        if budget != used[first]:
            raise UserError(
                f"{folder}: {first} was tuned by {_told(used[first])}, {name} by {_told(budget)}: tune all with the "
                "same --space and --trials into one folder (--name), and name that with --tuned-from"
            )
    return [spec if spec.recipe is None else with_tuning(spec, found[spec.method, spec.backbone]) for spec in specs]


def with_tuning(spec: RunSpec, tuned: Tuned) -> RunSpec:
    """The spec with the best configuration in its recipe, and a word on the search."""
    assert spec.recipe is not None
    recipe = Recipe.model_validate(spec.recipe.model_dump() | tuned.best)
    return spec.model_copy(update={"recipe": recipe, "tuning": str(tuned.budget)})


def _difference(spec: RunSpec, base: RunSpec) -> str | None:
    """The first field in which what is run differs from what was tuned. A seed may, and the suite's name does."""
    wanted, have = spec.model_dump(exclude={"suite", "seed"}), base.model_dump(exclude={"suite", "seed"})
    if set(spec.split_hash) == {"-"}:  # the phantom is not generated yet
        have["split_hash"] = wanted["split_hash"]
    return next((f"{name} ({have[name]})"[:80] for name in wanted if wanted[name] != have[name]), None)


def _told(budget: Budget) -> str:
    return f"{budget} of {' '.join(budget.space)}"
