"""What a command that failed or was stopped tells its user."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ....errors import IsoframeError, exit_code
from ....events import CancelledEvent, FailureEvent
from .interrupt import Interrupt, lasting_interrupt
from .printing import PlainFormatter, echo
from .progress import print_json

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
                print_json(event)
            if isinstance(event, FailureEvent) and (debug or not isinstance(error, IsoframeError | OSError)):
                raise
            echo("\n".join([_summary(event), *event.notes]), err=True)
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
            echo(
                f"the Hugging Face Hub does not answer ({reason}), trying again for a while; without a network "
                "use --local-files-only, which takes what is cached and does not ask",
                err=True,
            )
        return not separator and not text.startswith("Retrying in")


@contextmanager
def _logging(debug: bool) -> Iterator[None]:
    """Warnings of the engine and the licences of downloads go to stderr; with ``debug`` everything does."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(levelname)s %(name)s: %(message)s" if debug else "%(message)s"))
    logging.basicConfig(handlers=[handler])
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
