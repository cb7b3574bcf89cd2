"""What a command that failed or was stopped tells its user, and signals, of which none is lost."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from ....errors import IsoframeError, exit_code
from ....events import CancelledEvent, FailureEvent
from .progress import json_line

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
        """Of the first signal: "SIGINT", "SIGTERM" or "SIGHUP"."""
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
        """The handler."""
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
    handlers = {number: signal.getsignal(number) for number in _stop_signals()}
    for handler in handlers.values():
        installed = getattr(handler, "__self__", None)
        if isinstance(installed, Interrupt):
            yield installed
            return
    interrupt = Interrupt()
    # A job in the background of a script, or under nohup, has signals ignored, and they stay so.
    before = {number: handler for number, handler in handlers.items() if _is_default(handler)}
    for number in before:
        signal.signal(number, interrupt.press)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_signals() -> list[int]:
    """Those of them that this platform has."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def _is_default(handler: object) -> bool:
    return handler in (signal.SIG_DFL, signal.default_int_handler)


# Where huggingface_hub tells of its attempts.
_HUB_LOGGER = "huggingface_hub.utils._http"


@contextmanager
def readable_errors(*, debug: bool, is_json: bool = False) -> Iterator[Interrupt]:
    """Turn expected errors and Ctrl-C into one line on stderr and an exit code.

    Notes of the exception follow on lines of their own. Gives whether the user wants to stop.

    Args:
        debug: keep the traceback of an error.
        is_json: also report the end as an event on stdout, that of an unexpected error too.
    """
    with lasting_interrupt() as interrupt, _logging(debug):
        try:
            yield interrupt
        except (BrokenPipeError, typer.Exit):
            raise
        except (Exception, KeyboardInterrupt) as error:
            event = _describe(error, interrupt)
            if is_json:
                typer.echo(json_line(event))
            if isinstance(event, FailureEvent) and (debug or not isinstance(error, IsoframeError | OSError)):
                raise
            typer.echo("\n".join([_summary(event), *event.notes]), err=True)
            raise typer.Exit(event.exit_code) from error


def _describe(error: BaseException, interrupt: Interrupt) -> FailureEvent | CancelledEvent:
    notes = tuple(getattr(error, "__notes__", ()))
    # An import that Ctrl-C breaks off may end in an exception of another kind.
    if isinstance(error, KeyboardInterrupt) or interrupt.was_pressed():
        return CancelledEvent(signal=interrupt.name, notes=notes, exit_code=interrupt.exit_code)
    return FailureEvent(
        error=type(error).__name__, message=_message(error), notes=notes, exit_code=exit_code(error)
    )


def _summary(event: FailureEvent | CancelledEvent) -> str:
    if isinstance(event, FailureEvent):
        return f"error: {event.message}"
    return "cancelled" if event.signal == "SIGINT" else f"stopped by {event.signal}"


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


class _HubRetries(logging.Filter):
    """One line instead of two for every attempt to reach the Hub, of which there are six for each file."""

    def __init__(self) -> None:
        super().__init__()
        self._is_told = False

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        reason, separator, _ = text.partition(" thrown while requesting")
        if separator and not self._is_told:
            self._is_told = True
            typer.echo(
                f"the Hugging Face Hub does not answer ({reason}), trying again for a while; without a network "
                "use --local-files-only, which takes what is cached and does not ask",
                err=True,
            )
        return not separator and not text.startswith("Retrying in")


@contextmanager
def _logging(debug: bool) -> Iterator[None]:
    """Warnings of the engine and the licences of downloads go to stderr; with ``debug`` everything does."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s" if debug else "%(message)s")
    levels = {"isoframe": logging.WARNING, "isoframe.engine.checkpoints.hub": logging.INFO}
    loggers = {logging.getLogger(name): level for name, level in levels.items()}
    before = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(logging.DEBUG if debug else level)
    hub_logger, retries = logging.getLogger(_HUB_LOGGER), _HubRetries()
    if not debug:
        hub_logger.addFilter(retries)
    try:
        yield
    finally:
        hub_logger.removeFilter(retries)
        for logger, level in before.items():
            logger.setLevel(level)
