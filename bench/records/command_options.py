"""What the commands of ``isoframe bench`` have in common: options, groups of options, and where results go."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...engine.interfaces.commands.terminal import options
from ...engine.interfaces.commands.terminal.command import command
from ...engine.request.config import check_choice

if TYPE_CHECKING:
    from .rows import BenchRow

__all__ = ["command", "options"]

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
]
Page = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write a page with plots (HTML).")
]
Document = Annotated[
    Path | None, typer.Option("--docs", metavar="FILE", help="Write to FILE instead of the terminal.")
]
Cases = Annotated[list[str] | None, typer.Option("--case", help="Only this case; repeatable.")]
Budgets = Annotated[list[str] | None, typer.Option("--budget", metavar="SIZE", help="Repeatable.")]
Weights = Annotated[
    str,
    typer.Option("--weights", help="model, or random: the shape of --model without its files."),
]
SomeModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="demo, framepack-13b, a Hub id or a folder (default: demo; framepack-13b where only its shape is needed).",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFiles:
    """Where results go, beside the terminal."""

    json_file: JsonFile = None
    report: Page = None

    def check(self) -> None:
        """Raise ConfigError where the page could not be drawn, before anything is measured."""
        if self.report is not None:
            from .html_page import check_report_libraries

            check_report_libraries()

    def store(self, rows: "Sequence[BenchRow]", write_page: Callable[[Path], None]) -> None:
        """Append ``rows`` to the file, and have the page written."""
        append(self.json_file, rows)
        if self.report is not None:
            write_page(self.report)


def append(json_file: Path | None, rows: "Sequence[BenchRow]") -> None:
    """Append ``rows`` to a file, if there is one."""
    if json_file is not None:
        from .rows import append_rows

        append_rows(json_file, rows)


def publish(text: str, file: Path | None) -> None:
    """Write ``text`` to a file, or to the terminal where there is none."""
    if file is None:
        typer.echo(text, nl=False)
    else:
        file.write_text(text, encoding="utf-8")


def check_choices(argument: str, values: Sequence[str] | None, choices: Sequence[str]) -> None:
    """Raise ConfigError unless every one of ``values`` is among ``choices``."""
    for value in values or ():
        check_choice(argument, value, choices)
