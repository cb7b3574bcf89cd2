"""What a failed command tells its user."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ..errors import ConfigError, IsoframeError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANCELLED = 130


@contextmanager
def readable_errors(*, debug: bool) -> Iterator[None]:
    """Turn expected errors into one line on stderr and an exit code; ``debug`` keeps the traceback.

    Notes of the exception follow on lines of their own.
    """
    try:
        with _logging(debug):
            yield
    except BrokenPipeError:
        raise
    except (IsoframeError, OSError) as error:
        if debug:
            raise
        typer.echo(f"error: {_message(error)}", err=True)
        raise typer.Exit(EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED) from error
    except KeyboardInterrupt as interrupt:
        typer.echo("\n".join(["cancelled", *getattr(interrupt, "__notes__", [])]), err=True)
        raise typer.Exit(EXIT_CANCELLED) from interrupt


def _message(error: Exception) -> str:
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return "\n".join([message, *getattr(error, "__notes__", [])])


@contextmanager
def _logging(debug: bool) -> Iterator[None]:
    """Warnings of the engine and the licences of downloads go to stderr; with ``debug`` everything does."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s" if debug else "%(message)s")
    levels = {"isoframe": logging.WARNING, "isoframe.engine.hub": logging.INFO}
    loggers = {logging.getLogger(name): level for name, level in levels.items()}
    before = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(logging.DEBUG if debug else level)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
