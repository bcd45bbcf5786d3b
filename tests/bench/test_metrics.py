import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.metrics import counts
from bench.records import decode_mask, encode_mask

MASKS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(prediction=arrays(bool, (5, 7)), truth=arrays(bool, (5, 7)))
def test_counts_against_a_loop(prediction, truth):
    pairs = list(zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True))
    assert counts(prediction, truth) == tuple(
        pairs.count(pair) for pair in [(True, True), (True, False), (False, True)]
    )


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="prediction is"):
        counts(np.zeros((2, 3), bool), np.zeros((3, 2), bool))


@given(MASKS)
def test_run_lengths_come_back(mask):
    runs = encode_mask(mask)
    assert sum(runs) == mask.size
    np.testing.assert_array_equal(decode_mask(runs, *mask.shape), mask)
