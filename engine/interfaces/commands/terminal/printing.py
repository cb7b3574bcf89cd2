"""What reaches the terminal: text of users and of foreign files does nothing there but be read."""

import logging
import sys
from typing import Any

from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

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


class PlainGroup(TyperGroup):
    """Commands whose usage errors show arguments without obeying them."""

    def make_context(self, *told: Any, **about: Any) -> Any:
        """Read the arguments of the program itself."""
        return _plainly(super().make_context, *told, **about)

    def invoke(self, *told: Any, **about: Any) -> Any:
        """Read the arguments of a command, and run it."""
        return _plainly(super().invoke, *told, **about)


def _plainly(action: Any, *told: Any, **about: Any) -> Any:
    try:
        return action(*told, **about)
    except Exception as error:
        # A usage error; its class has moved from click to typer.
        if hasattr(error, "format_message") and hasattr(error, "message"):
            error.message = printable(error.message)
        raise
