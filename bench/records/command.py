"""``isoframe bench`` compare and results: two files of results side by side, and stored results as Markdown."""

from pathlib import Path
from typing import Annotated

import typer

from ...engine.errors import InputError
from ...engine.request.config import check_choice
from .command_options import Document, command, publish

_FOLDER = Path(__file__).resolve().parents[1] / "results"
_File = Annotated[
    Path, typer.Argument(metavar="FILE", help="Results, as --json of the other commands writes them.")
]


@command()
def compare(before: _File, after: _File) -> None:
    """Compare what two files have in common; exit 1 where a correctness gate is red, and no figure is printed there."""
    from .comparison import compare_rows, differing_conditions
    from .rows import read_rows

    pairs = list(compare_rows(read_rows(before), read_rows(after)))
    if not pairs:
        raise InputError(f"{before} and {after} have no quantity in common; compare results of one command")
    for difference in differing_conditions(pairs[-1].before.environment, pairs[-1].after.environment):
        typer.echo(f"not the same, {difference}")
    for pair in pairs:
        row = pair.after
        figures = f"{pair.before.median:.6g} -> {row.median:.6g} {row.unit}"
        if pair.red_gates:
            figures = row.unit
        typer.echo(f"{row.case} {row.variant} {row.precision}: {figures}  {pair.verdict()}")
    if any(pair.red_gates for pair in pairs):
        raise typer.Exit(1)


@command()
def results(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Results (default: the committed ones).")
    ] = None,
    page: Annotated[
        str, typer.Option("--page", help="benchmarks (everything) or precision (formats and their errors).")
    ] = "benchmarks",
    docs: Document = None,
) -> None:
    """Describe stored results: every figure with its interval, its machine, and whether it was measured."""
    from .results_page import render, render_precision
    from .rows import read_rows

    pages = {"benchmarks": render, "precision": render_precision}
    check_choice("--page", page, pages)
    rows = [row for file in files or sorted(_FOLDER.glob("*.jsonl")) for row in read_rows(file)]
    publish(pages[page](rows), docs)
