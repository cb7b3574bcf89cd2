"""``isoframe bench gpu`` and ``isoframe bench tune``: measurements on the present GPU."""

from typing import Annotated

import typer

from . import argparse_commands as bare_commands

Minutes = Annotated[float, typer.Option("--minutes", help="After which nothing new starts.")]


def gpu(
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the rows, one file a stage.")],
    minutes: Minutes = 8.0,
) -> None:
    """Check and time every kernel and a step of the 13B model with random weights; exit 1 if one is wrong.

    Then paces, constant cost, memory ceilings and diffusers' pipeline, as far as time, memory and libraries allow.
    """
    raise typer.Exit(bare_commands.gpu(["--out", out, "--minutes", str(minutes)]))


def tune(
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Settings to write, others in it are kept (default: where the engine looks for them).",
        ),
    ] = None,
    kernel: Annotated[
        list[str] | None, typer.Option("--kernel", help="Only these settings; repeatable.")
    ] = None,
    minutes: Minutes = 8.0,
) -> None:
    """Measure launch settings of the kernels and write the fastest that were found."""
    names = [argument for name in kernel or () for argument in ("--kernel", name)]
    target = [] if out is None else ["--out", out]
    raise typer.Exit(bare_commands.tune([*target, "--minutes", str(minutes), *names]))
