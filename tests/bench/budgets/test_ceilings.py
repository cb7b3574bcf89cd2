"""Bisection finds the ceiling, asks about both sides of it, and asks few questions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoframe.bench.budgets.ceilings import find_largest, find_least


@given(needed=st.integers(1, 1000), step=st.integers(1, 50), low=st.integers(0, 100))
def test_the_least_multiple_that_is_enough_is_found(needed: int, step: int, low: int) -> None:
    asked = []

    def is_enough(value: int) -> bool:
        asked.append(value)
        return value >= needed

    found = find_least(is_enough, low=low, high=1000, step=step)
    enough = [value for value in range(step * (low // step + 1), 1001, step) if value >= needed]
    assert found == (enough[0] if enough else None)
    assert len(asked) <= 12
    if found is not None:
        assert found in asked
        assert found - step in asked or found - step == low // step * step


@given(limit=st.integers(0, 30), count=st.integers(1, 30))
def test_the_largest_that_fits_is_found(limit: int, count: int) -> None:
    found = find_largest(lambda value: value <= limit, range(1, count + 1))
    assert found == (min(limit, count) or None)


def test_what_does_not_fit_in_the_most_is_none_at_once() -> None:
    asked: list[int] = []
    assert find_least(lambda value: bool(asked.append(value)), low=0, high=64, step=8) is None
    assert asked == [64]


def test_an_empty_range_has_no_least() -> None:
    assert find_least(lambda _: pytest.fail("nothing to ask"), low=16, high=20, step=8) is None
