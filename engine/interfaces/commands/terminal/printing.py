"""What reaches the terminal: text of users and of foreign files does nothing there but be read."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

# Spaces, and joiners inside of words and emoji; all others that Python calls unprintable change what is seen.
_SEEN = "\u00a0\u3000\u200c\u200d"


def printable(text: object, *, is_line: bool = False) -> str:
    """Text with escapes such as ``\\x1b`` in place of what a terminal obeys or what reorders and hides other text.

    Args:
        text: from anywhere.
        is_line: also escape line breaks and tabs, so that it stays in its line.
    """
    kept = _SEEN if is_line else f"\n\t{_SEEN}"
    return "".join(
        one if one.isprintable() or one in kept else one.encode("unicode_escape").decode()
        for one in str(text)
    )


def echo(text: object, *, err: bool = False) -> None:
    """Print lines to stdout or stderr."""
    # Not typer's, which takes ASCII for a mistake and writes UTF-8.
    print(printable(text), file=sys.stderr if err else sys.stdout, flush=True)


class PlainConsole(Console):
    """A console that takes texts as they are: no markup, no emoji names, no control characters."""

    def __init__(self, **about: Any) -> None:
        """``about`` is as of :class:`rich.console.Console`."""
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **about})

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed, also in a table, comes through here."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})


class PlainFormatter(logging.Formatter):
    """Records of the log as they may be shown."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        return printable(super().format(record))


class _PlainUsage:
    """Usage errors of a command that show its arguments without obeying them."""

    def make_context(self, *told: Any, **about: Any) -> Any:
        """Read the arguments."""
        with _plain_errors():
            return super().make_context(*told, **about)  # type: ignore[misc]  # of a command

    def resolve_command(self, *told: Any) -> Any:
        """Look a command of a group up."""
        with _plain_errors():
            return super().resolve_command(*told)  # type: ignore[misc]  # of a group


class _PlainCommand(_PlainUsage, TyperCommand):
    pass


class _PlainGroup(_PlainUsage, TyperGroup):
    pass


def show_usage_plainly(app: typer.Typer) -> None:
    """Have all commands of ``app`` show arguments in usage errors without obeying them."""
    app.info.cls = _PlainGroup
    for command in app.registered_commands:
        command.cls = _PlainCommand
    for group in app.registered_groups:
        assert group.typer_instance is not None
        group.cls = _PlainGroup
        show_usage_plainly(group.typer_instance)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # A usage error; its class has moved from click to typer.
        if hasattr(error, "format_message") and hasattr(error, "message"):
            error.message = printable(error.message)
        raise
