"""Ctrl-C that is not lost."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def lasting_interrupt() -> Iterator[Callable[[], None]]:
    """Remember Ctrl-C; yields a function that raises ``KeyboardInterrupt`` if it was pressed and had no effect.

    Python drops a ``KeyboardInterrupt`` that is raised while a destructor runs, and the job would go on.
    """
    is_pending = False

    def press(_signal: int, _frame: FrameType | None) -> None:
        nonlocal is_pending
        is_pending = True
        raise KeyboardInterrupt

    def check() -> None:
        if is_pending:
            raise KeyboardInterrupt

    # A job in the background of a script has the signal ignored, and stays so.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
