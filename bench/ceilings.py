"""Ceilings by bisection: the least that is enough, and the most that fits. What fits is asked of someone else."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def find_least(is_enough: Callable[[int], bool], *, low: int, high: int, step: int) -> int | None:
    """The least multiple of ``step`` above ``low`` that is enough; None if ``high`` is not.

    The result was asked for itself, and so was the multiple below it unless that is ``low``: both sides are evidence.

    Args:
        is_enough: asked about multiples of ``step``; what is more than enough is enough.
        low: known or taken to be too little; rounded down.
        high: rounded down.
        step: resolution.
    """
    below, above = low // step, high // step
    if above <= below or not is_enough(above * step):
        return None
    while above - below > 1:
        middle = (below + above) // 2
        if is_enough(middle * step):
            above = middle
        else:
            below = middle
    return above * step


def find_largest(fits: Callable[[T], bool], candidates: Sequence[T]) -> T | None:
    """The last of ``candidates`` that fits; None if the first does not.

    Args:
        fits: asked about candidates; what is before one that fits fits too.
        candidates: from the smallest to the largest.
    """
    if fits(candidates[-1]):
        return candidates[-1]
    too_many = find_least(lambda count: not fits(candidates[count - 1]), low=0, high=len(candidates), step=1)
    assert too_many is not None, "the last one does not fit"
    return candidates[too_many - 2] if too_many > 1 else None
