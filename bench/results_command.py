"""``isoframe bench results``: stored results as Markdown."""

from pathlib import Path
from typing import Annotated

import typer

_FOLDER = Path(__file__).resolve().parent / "results"


def results(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Results (default: the committed ones).")
    ] = None,
    page: Annotated[
        str, typer.Option("--page", help="benchmarks (everything) or precision (formats and their errors).")
    ] = "benchmarks",
    docs: Annotated[
        Path | None, typer.Option("--docs", metavar="FILE", help="Write to FILE instead of the terminal.")
    ] = None,
) -> None:
    """Describe stored results: every figure with its interval, its machine, and whether it was measured."""
    from ..engine.commands.failures import readable_errors
    from ..engine.config import check_choice
    from .precision_docs import render_precision
    from .result_docs import render
    from .rows import read_rows

    pages = {"benchmarks": render, "precision": render_precision}
    with readable_errors(debug=False):
        check_choice("--page", page, pages)
        rows = [row for file in files or sorted(_FOLDER.glob("*.jsonl")) for row in read_rows(file)]
        text = pages[page](rows)
        if docs is None:
            typer.echo(text, nl=False)
        else:
            docs.write_text(text, encoding="utf-8")
