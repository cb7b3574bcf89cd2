"""``isoframe bench gpu``: every kernel and a whole step on the present GPU."""

from typing import Annotated

import typer


def gpu(
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the rows, one file a stage.")],
    minutes: Annotated[float, typer.Option("--minutes", help="After which nothing new starts.")] = 8.0,
) -> None:
    """Check and time every kernel and a step of the 13B model with random weights; exit 1 if one is wrong."""
    from .gpu_main import main

    raise typer.Exit(main(["--out", out, "--minutes", str(minutes)]))
