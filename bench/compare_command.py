"""``isoframe bench compare``: two files of results side by side."""

from pathlib import Path
from typing import Annotated

import typer

_File = Annotated[
    Path, typer.Argument(metavar="FILE", help="Results, as --json of the other commands writes them.")
]


def compare(before: _File, after: _File) -> None:
    """Compare what two files have in common; exit 1 where a correctness gate is red, and no figure is printed there."""
    from ..engine.commands.failures import readable_errors
    from ..engine.errors import InputError
    from .compare import compare_rows, differing_conditions
    from .rows import read_rows

    with readable_errors(debug=False):
        pairs = list(compare_rows(read_rows(before), read_rows(after)))
        if not pairs:
            raise InputError(
                f"{before} and {after} have no quantity in common; compare results of one command"
            )
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
