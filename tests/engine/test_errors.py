"""Errors that cross from one process to another."""

import copy
import pickle

import pytest

from isoframe.engine.errors import BudgetError, InputError, IsoframeError, NumericalError, UnknownModelError


@pytest.mark.parametrize(
    "error",
    [
        InputError("no such file"),
        UnknownModelError("no such model"),
        BudgetError("too much", needed=7, available=3, option="vram"),
        NumericalError("latents became NaN", section=1, step=2, backend="sdpa"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_the_same_after_pickling_and_copying(error: IsoframeError) -> None:
    error.add_note("what is left")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)
