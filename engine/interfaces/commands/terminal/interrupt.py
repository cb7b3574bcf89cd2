"""Signals that stop a program, of which none is lost; imports nothing that takes time."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
_IMPATIENT = b"\nstopping; what is finished is being kept (press Ctrl-C once more to give it up)\n"


class Interrupt:
    """Whether this process was told to stop: by Ctrl-C, SIGTERM, or the end of its terminal.

    The first signal raises ``KeyboardInterrupt`` where the program is. The second only says what is going on, since
    the program is keeping what is finished; the third raises again.
    """

    def __init__(self) -> None:
        self._signals: list[int] = []

    @property
    def name(self) -> str:
        """Name of the first signal that came: "SIGINT", "SIGTERM" or "SIGHUP"."""
        return signal.Signals(self._first).name

    @property
    def exit_code(self) -> int:
        """What shells report for the first signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self._first

    def was_pressed(self) -> bool:
        """Whether a signal came; it may have had no effect yet."""
        return bool(self._signals)

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` if a signal came.

        Python drops a ``KeyboardInterrupt`` that is raised while a destructor runs, and the job would go on.
        """
        if self._signals:
            raise KeyboardInterrupt

    def press(self, signal_number: int, _frame: FrameType | None) -> None:
        """Handle a signal: the second says what is going on, all others raise ``KeyboardInterrupt``."""
        self._signals.append(signal_number)
        if len(self._signals) == 2:
            # Not a print: it could meet the half-finished print of the program.
            os.write(2, _IMPATIENT)
            return
        raise KeyboardInterrupt

    @property
    def _first(self) -> int:
        return self._signals[0] if self._signals else signal.SIGINT


@contextmanager
def lasting_interrupt() -> Iterator[Interrupt]:
    """Have signals remembered; inside another one, the other one's :class:`Interrupt`."""
    # Those of the signals that this platform has.
    stopping = [getattr(signal, name) for name in _STOPPING if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in stopping}
    for handler in handlers.values():
        installed = getattr(handler, "__self__", None)
        if isinstance(installed, Interrupt):
            yield installed
            return
    interrupt = Interrupt()
    # A job in the background of a script, or under nohup, has signals ignored, and they stay so.
    before = {number: handler for number, handler in handlers.items() if handler in _DEFAULTS}
    for number in before:
        signal.signal(number, interrupt.press)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
