"""How a budget cuts nnU-Net's plan."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.nnunet_experts import apply_budget
from bench.spec import NnunetBudget


def own_plan(height: int, width: int) -> dict:
    """The parts of an nnU-Net 2d configuration that a budget touches, for a patch of six stages."""
    stages = 6
    network = {
        "n_stages": stages,
        "features_per_stage": [32, 64, 128, 256, 512, 512],
        "strides": [[1, 1]] + [[2, 2]] * (stages - 1),
        "kernel_sizes": [[3, 3]] * stages,
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    return {"batch_size": 12, "patch_size": [height, width], "architecture": {"arch_kwargs": network}}


@given(st.integers(4, 20), st.integers(4, 20), st.none() | st.integers(16, 600), st.none() | st.integers(3, 9))
def test_budget_gives_a_plan_that_fits(rows, columns, patch, stages):
    plan = own_plan(32 * rows, 32 * columns)
    features = None if stages is None else tuple(range(8, 8 + stages))
    budget = NnunetBudget(epochs=1, iterations_per_epoch=1, batch_size=3, patch_size=patch, features=features)
    apply_budget(plan, budget.model_dump())
    network = plan["architecture"]["arch_kwargs"]
    strides = np.prod(network["strides"], axis=0)
    size = np.array(plan["patch_size"])
    assert plan["batch_size"] == 3
    assert (size <= [32 * rows, 32 * columns]).all() and (size <= (patch or 9999)).all()
    assert (size % strides == 0).all() and (size // strides >= 4).all()
    assert 3 <= network["n_stages"] <= (stages or 6)
    for field in ("features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage"):
        assert len(network[field]) == network["n_stages"]
    assert len(network["n_conv_per_stage_decoder"]) == network["n_stages"] - 1


def test_empty_budget_leaves_the_plan_alone():
    plan = own_plan(256, 192)
    apply_budget(plan, NnunetBudget(epochs=1, iterations_per_epoch=1).model_dump())
    assert plan == own_plan(256, 192)


def test_too_small_a_patch_is_refused():
    with pytest.raises(ValueError, match="16 px"):
        apply_budget(own_plan(64, 64), {"batch_size": 2, "patch_size": 12, "features": (4, 4, 4)})
