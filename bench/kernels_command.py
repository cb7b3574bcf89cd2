"""``isoframe bench kernels``: the reference of all operations, as Markdown."""

from pathlib import Path
from typing import Annotated

import typer


def kernels(
    docs: Annotated[
        Path | None, typer.Option("--docs", metavar="FILE", help="Write to FILE instead of the terminal.")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Compilations at a time.")] = 2,
) -> None:
    """Describe every operation: formula, fusion, exactness, tolerances, launch settings, and what it compiles to."""
    from ..engine.commands.failures import readable_errors
    from ..kernels import KERNELS
    from .aot import check_triton, compile_pairs
    from .environment import installed_version
    from .kernel_docs import render

    with readable_errors(debug=False):
        check_triton()
        pairs = compile_pairs(list(KERNELS), num_processes=processes)
        text = render(KERNELS, pairs, installed_version("triton") or "unknown")
        if docs is None:
            typer.echo(text, nl=False)
        else:
            docs.write_text(text, encoding="utf-8")
