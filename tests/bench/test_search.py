"""The search's space and rule: grids as written, draws that repeat, and the decisions of Ray's own ASHA."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import UserError
from bench.search import Range, configurations, goes_on, parse_space, rungs
from experiments.profiles import PROFILES
from experiments.search import GRIDS, PAPER_GRID


def test_the_papers_grid_is_that_of_appendix_a4(shared):
    text = (shared / "paper" / "paper.md").read_text()
    assert "learning rates 2×10^{-5} , 4×10^{-5} , 5×10^{-5} , 1×10^{-4} , and weight decays 10^{-4}" in text
    assert PAPER_GRID == {"learning_rate": (2e-5, 4e-5, 5e-5, 1e-4), "weight_decay": (1e-4, 1e-3, 1e-2)}
    assert GRIDS["paper"] == PAPER_GRID and set(GRIDS) == set(PROFILES)


def test_the_papers_recipe_is_that_of_appendix_a4(shared):
    text = (shared / "paper" / "paper.md").read_text()
    assert "learning rate 2×10^{-5} and weight decay 10^{-2} for training *BoltzFormer*" in text
    assert "batch size 12×32" in text and "maximum of 40 epochs" in text
    recipe = PROFILES["paper"].recipe
    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_images) == (2e-5, 1e-2, 12 * 32)
    assert recipe.steps == 40 * recipe.validate_every and recipe.patience < 40, "a validation an epoch, early stopping"


def test_a_grid_is_every_combination_once_and_all_methods_get_the_same():
    drawn = configurations(PAPER_GRID, seed=1)
    pairs = [(c["learning_rate"], c["weight_decay"]) for c in drawn]
    assert sorted(pairs) == sorted((lr, wd) for lr in PAPER_GRID["learning_rate"] for wd in PAPER_GRID["weight_decay"])
    assert drawn == configurations(PAPER_GRID, seed=1) != configurations(PAPER_GRID, seed=2)
    assert configurations(PAPER_GRID, trials=5, seed=1) == drawn[:5]


def test_spaces_of_the_command_line():
    assert parse_space(["lr=1e-4,1e-3", "warmup_steps=0,50"]) == {
        "learning_rate": (1e-4, 1e-3),
        "warmup_steps": (0, 50),
    }
    space = parse_space(["lr=log:1e-5..1e-3", "weight_decay=0..0.1"])
    assert space == {"learning_rate": Range(1e-5, 1e-3, log=True), "weight_decay": Range(0, 0.1)}
    drawn = configurations(space, trials=400)
    assert all(1e-5 <= c["learning_rate"] <= 1e-3 and 0 <= c["weight_decay"] <= 0.1 for c in drawn)
    low = sum(c["learning_rate"] < 1e-4 for c in drawn)
    assert 150 < low < 250, "a logarithmic range is halved by its geometric mean"


@pytest.mark.parametrize(
    ("text", "message"),
    [("learning_rat=1", "did you mean 'learning_rate'"), ("steps=5", "unknown field"), ("lr", "write e.g."),
     ("lr=hot", "write e.g."), ("lr=0", "cannot be"), ("lr=-1..1", "cannot be"), ("lr=nan", "cannot be"),
     ("lr=1..0.1", "a range is"), ("weight_decay=log:0..1", "a range is"), ("warmup_steps=1.5", "cannot be"),
     ("warmup_steps=1..5", "a range is"), ("lr=1..2..3", "a range is")],
)  # fmt: skip
def test_spaces_that_cannot_be(text, message):
    with pytest.raises(UserError, match=message):
        parse_space([text])


def test_a_range_needs_a_number_of_trials():
    with pytest.raises(UserError, match="--trials"):
        configurations(parse_space(["lr=1e-5..1e-3"]))
    with pytest.raises(UserError, match="twice"):
        parse_space(["lr=1e-4", "learning_rate=1e-3"])


@pytest.mark.parametrize(
    ("profile", "expected"), [("laptop", (280, 560)), ("paper", (1125, 3150)), ("smoke", (10,)), ("gpu", (2700, 7200))]
)
def test_rungs_are_validations_after_a_ninth_and_a_third(profile, expected):
    recipe = PROFILES[profile].recipe
    assert rungs(recipe) == expected
    assert all(step % recipe.validate_every == 0 for step in expected)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.01, 10, allow_nan=False), min_size=1, max_size=15))
def test_the_rule_is_that_of_rays_asha(losses):
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    asha = ASHAScheduler(
        time_attr="step", metric="loss", mode="min", max_t=90, grace_period=30, reduction_factor=3, brackets=1
    )
    for i, loss in enumerate(losses):
        trial = SimpleNamespace(trial_id=str(i))
        asha.on_trial_add(None, trial)
        decision = asha.on_trial_result(None, trial, {"step": 30, "loss": loss})
        cutoff_is_loss = losses[:i] and abs(goes_margin(losses[:i]) - loss) < 1e-9  # a tie of rounding
        assert cutoff_is_loss or goes_on(loss, losses[:i]) == (decision == TrialScheduler.CONTINUE)


def goes_margin(others):
    """The loss of the best third, by hand: linear between the two nearest."""
    ordered = sorted(others)
    place = (len(ordered) - 1) / 3
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
