"""``isoframe bench ram``: a step with a model larger than its RAM budget."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .ram import RamCase, RamResult


def ram(
    case: Annotated[list[str] | None, typer.Option("--case", help="Only this case; repeatable.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where the stores are made and kept (default: a temporary folder)."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
    ] = None,
) -> None:
    """Run a step on the CPU in less RAM than the model has, and once with all of it; exit 1 above the budget."""
    import tempfile

    from ..engine.commands.failures import readable_errors
    from ..engine.config import check_choice
    from .ram import CASES, build_store, describe, measure_ram

    results = []
    with readable_errors(debug=False), tempfile.TemporaryDirectory() as temporary:
        for name in case or ():
            check_choice("--case", name, CASES)
        for name in case or CASES:
            store = build_store(CASES[name], (folder or Path(temporary)) / name)
            for has_budget in (True, False):
                results.append((CASES[name], measure_ram(CASES[name], store, has_budget=has_budget)))
                typer.echo(describe(results[-1][1]))
        if json_file is not None:
            _append(json_file, results)
    if not all(result.is_reached for _, result in results if result.has_budget):
        raise typer.Exit(1)


def _append(path: Path, results: "list[tuple[RamCase, RamResult]]") -> None:
    from .rows import BenchRow, Gate, append_rows

    append_rows(
        path,
        [
            BenchRow(
                case=f"ram-{result.case}",
                variant=result.tier,
                shape=(case.num_heads * 128, case.num_dual_blocks, case.num_single_blocks),
                dtype="float32",
                unit="MiB",
                values=(result.peak_bytes / 2**20,),
                gate=Gate(
                    is_green=len({other.checksum for _, other in results if other.case == result.case}) == 1,
                    text=f"same bits of the latents from every tier; limit {result.limit_bytes / 2**20:.0f} MiB",
                ),
            )
            for case, result in results
        ],
    )
