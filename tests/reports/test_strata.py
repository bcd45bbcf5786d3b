"""Size groups: edges, the seven bins as a partition, and the area itself."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reports.strata import ALL, BIN_EDGES, BINS, GROUPS, LARGE, SMALL, area_percent, members


def test_an_object_of_exactly_one_percent_is_large():
    percent = area_percent(np.array([99, 100, 101]), np.array([100] * 3), np.array([100] * 3))
    assert members(percent, (SMALL, LARGE)).tolist() == [[True, False], [False, True], [False, True]]


@given(st.integers(1, 4096), st.integers(1, 4096), st.data())
def test_groups_agree_with_exact_arithmetic(height, width, data):
    area = data.draw(st.integers(0, height * width))
    percent = area_percent(np.array([area]), np.array([height]), np.array([width]))
    exact = Fraction(100 * area, height * width)
    edges = [Fraction(str(edge)) for edge in BIN_EDGES]
    expected = sum(exact >= edge for edge in edges)
    inside = members(percent, BINS)[0]
    assert inside.sum() == 1 and int(np.argmax(inside)) == expected
    assert members(percent, (SMALL,))[0, 0] == (exact < 1)


def test_the_groups_are_those_of_the_tables():
    assert [group.label for group in BINS] == [
        "<0.05%", "0.05-0.1%", "0.1-0.25%", "0.25-0.5%", "0.5-1%", "1-5%", ">=5%",
    ]  # fmt: skip
    assert (SMALL, LARGE, ALL, *BINS) == GROUPS
