"""Where a trial's time goes: every second once, and in the part that it belongs to."""

import time

import pytest
import torch

from bench import train
from bench.profiling import overhead
from bench.profiling.overhead import (
    AROUND,
    BACKWARD,
    BEFORE,
    FORWARD,
    INFERENCE,
    MEASURING,
    NETWORK,
    OPTIMISER,
    REST,
    STEPS,
    shares,
)
from experiments.profiles import SMOKE
from models.segmenter import BoltzFormer


def test_gaps_belong_to_what_they_lie_between():
    events = [
        (FORWARD, 2, 5),
        (BACKWARD, 5, 9),
        (OPTIMISER, 9, 10),
        (FORWARD, 11, 13),  # 1 between two steps
        (BACKWARD, 13, 17),
        (OPTIMISER, 18, 19),  # 1 within a step
        (INFERENCE, 22, 24),  # 3 before, 4 after validation
        (FORWARD, 28, 29),
        (BACKWARD, 29, 30),
        (OPTIMISER, 30, 31),
        (MEASURING, 33, 39),
        (INFERENCE, 40, 41),
    ]
    found = shares(events, 0, 50)
    assert found == {
        FORWARD: 6,
        BACKWARD: 9,
        OPTIMISER: 3,
        INFERENCE: 3,
        BEFORE: 2,
        STEPS: 2,
        AROUND: 3 + 4 + 2 + 1 + 9,
        MEASURING: 6,
    }
    assert sum(found.values()) == 50


def test_the_parts_of_a_real_trial_are_its_wall_time(tmp_path):
    before = BoltzFormer.forward, torch.Tensor.backward, train.inference_cost
    started = time.perf_counter()
    parts = overhead.parts_of_trial(SMOKE, tmp_path)
    assert 0 < sum(parts.values()) < time.perf_counter() - started
    assert list(parts) == [*NETWORK, *REST] and all(seconds > 0 for seconds in parts.values())
    assert before == (BoltzFormer.forward, torch.Tensor.backward, train.inference_cost)


def test_a_trial_that_fails_is_not_measured(tmp_path):
    broken = SMOKE.model_copy(update={"recipe": SMOKE.recipe.model_copy(update={"learning_rate": float("nan")})})
    with pytest.raises(RuntimeError, match="the trial that is measured ended failed: ValueError"):
        overhead.parts_of_trial(broken, tmp_path)
