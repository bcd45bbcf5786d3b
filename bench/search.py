"""A search of hyper-parameters without its trainings: the space, the configurations drawn from it, and when one stops.

Everything here is a function of its arguments, so that each method of a comparison is given the same search.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.errors import UserError, unknown_name
from bench.spec import Profile, Recipe, RunSpec
from experiments.search import GRIDS, PAPER_GRID

if TYPE_CHECKING:
    import numpy as np

# Fields of the recipe that leave the budget (steps, images, pixels) as it is.
TUNABLE = ("learning_rate", "weight_decay", "warmup_steps", "clip_norm", "beta2")
ALIASES = {"lr": "learning_rate"}
REDUCTION = 3  # about one configuration in so many goes on at a rung
EXAMPLE = "--space lr=1e-4,1e-3 or --space lr=log:1e-5..1e-3"


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high`, drawn uniformly, with `log` uniformly in their logarithm."""

    low: float
    high: float
    log: bool = False


Space = Mapping[str, Sequence[float] | Range]  # by field of the recipe


def space_of(texts: Sequence[str], profile: Profile) -> Space:
    """The space that --space names: by default the profile's grid, "paper" for the paper's."""
    if not texts:
        return GRIDS[profile.name]
    return PAPER_GRID if list(texts) == ["paper"] else parse_space(texts)


def parse_space(texts: Sequence[str]) -> Space:
    """ "lr=1e-4,1e-3", "weight_decay=log:1e-4..1e-2" -> a space. UserError for anything else."""
    space: dict[str, Sequence[float] | Range] = {}
    for text in texts:
        name, _, values = text.partition("=")
        field = ALIASES.get(name.strip(), name.strip())
        if field not in TUNABLE:
            raise unknown_name("field of --space", name, [*TUNABLE, *ALIASES])
        if field in space:
            raise UserError(f"--space {text}: {field} is there twice; give all its values at once")
        space[field] = _values(text, field, values)
    return space


def _values(text: str, field: str, values: str) -> Sequence[float] | Range:
    log = values.startswith("log:")
    parts = values.removeprefix("log:").split("..") if ".." in values else values.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        raise UserError(f"--space {text}: write e.g. {EXAMPLE}") from None
    whole = Recipe.model_fields[field].annotation is int
    lowest = 0.0 if field in ("weight_decay", "warmup_steps") else math.ulp(0.0)
    if any(not math.isfinite(n) or n < lowest or (whole and n != int(n)) for n in numbers):
        raise UserError(f"--space {text}: {field} cannot be that; write e.g. {EXAMPLE}")
    if ".." not in values:
        return tuple(dict.fromkeys(int(n) if whole else n for n in numbers))
    if len(numbers) != 2 or not numbers[0] < numbers[1] or (log and numbers[0] <= 0) or whole:
        raise UserError(f"--space {text}: a range is LOW..HIGH of a fractional field; write e.g. {EXAMPLE}")
    return Range(*numbers, log)


def configurations(space: Space, trials: int | None = None, seed: int = 0) -> list[dict[str, float]]:
    """The configurations in the order in which they start, a function of the arguments; no two are equal.

    Of lists all combinations, or `trials` of them drawn without replacement; with a range `trials` draws. The order is
    random, for where few are trained side by side the first ones have the most rungs ahead.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    if trials is not None and trials < 1:
        raise UserError(f"--trials {trials}: at least 1")
    if not any(isinstance(values, Range) for values in space.values()):
        grid = [dict(zip(space, row, strict=True)) for row in itertools.product(*space.values())]
        if trials is not None and trials > len(grid):
            raise UserError(f"--trials {trials}: the space has {len(grid)} configurations; leave --trials out for all")
        return [grid[i] for i in rng.permutation(len(grid))[:trials]]
    if trials is None:
        raise UserError("--space with a range has no end: say how many configurations with --trials")
    return [{name: _draw(values, rng) for name, values in space.items()} for _ in range(trials)]


def configured(specs: Sequence[RunSpec], space: Space, trials: int | None) -> list[RunSpec]:
    """Every spec with every configuration, in the order in which they are trained: a search for each spec."""
    return [with_configuration(spec, one) for spec in specs for one in configurations(space, trials, spec.seed)]


def with_configuration(spec: RunSpec, configuration: Mapping[str, float]) -> RunSpec:
    """The spec with a configuration in its recipe, and named by it."""
    assert spec.recipe is not None
    recipe = spec.recipe.model_copy(update=dict(configuration))
    return spec.model_copy(update={"recipe": recipe, "variant": in_words(configuration)})


def in_words(configuration: Mapping[str, float]) -> str:
    """ "lr=0.001 weight_decay=0.01"."""
    short = {field: alias for alias, field in ALIASES.items()}
    return " ".join(f"{short.get(name, name)}={value:g}" for name, value in configuration.items())


def space_texts(space: Space) -> tuple[str, ...]:
    """The space as `parse_space` reads it."""

    def text(values: Sequence[float] | Range) -> str:
        if isinstance(values, Range):
            return f"{'log:' * values.log}{values.low}..{values.high}"
        return ",".join(map(str, values))

    return tuple(f"{name}={text(values)}" for name, values in space.items())


def _draw(values: Sequence[float] | Range, rng: np.random.Generator) -> float:
    if not isinstance(values, Range):
        return values[rng.integers(len(values))]
    if values.log:
        return math.exp(rng.uniform(math.log(values.low), math.log(values.high)))
    return float(rng.uniform(values.low, values.high))


def rungs(recipe: Recipe) -> tuple[int, ...]:
    """The steps at which a configuration may be stopped: the validations from 1/9 and from 1/3 of the steps on."""
    every = recipe.validate_every
    wanted = (math.ceil(recipe.steps / REDUCTION**power / every) * every for power in (2, 1))
    return tuple(sorted({step for step in wanted if step < recipe.steps}))


def goes_on(loss: float, others: Sequence[float]) -> bool:
    """ASHA's stopping rule at a rung (Li et al., MLSys 2020, as in Ray): is `loss` in the best third of `others`?

    `others` are the validation losses that other configurations had at this rung so far; the first goes on.
    """
    if not math.isfinite(loss):
        return False
    import numpy as np

    return not others or loss <= float(np.percentile(others, 100 / REDUCTION))
