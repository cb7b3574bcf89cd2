"""``isoframe bench forward``: one denoising step against diffusers' class."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .forward import ForwardResult


def forward(
    case: Annotated[list[str] | None, typer.Option("--case", help="Only this case; repeatable.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Steps of each; the median counts.")] = 20,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
    ] = None,
) -> None:
    """Time one denoising step against diffusers' class, same weights, on the CPU; exit 1 above the limit."""
    from ..engine.commands.failures import readable_errors
    from ..engine.config import check_choice
    from .forward import CASES, compare_forward

    with readable_errors(debug=False):
        for name in case or ():
            check_choice("--case", name, CASES)
        results = []
        for name in case or CASES:
            results.append(compare_forward(CASES[name], repeats))
            typer.echo(_forward_line(results[-1]))
        if json_file is not None:
            _append(json_file, results)
    if not all(result.is_reached for result in results):
        raise typer.Exit(1)


def _forward_line(result: "ForwardResult") -> str:
    verdict = "reached" if result.is_reached else "MISSED"
    diffusers, isoframe = (
        1e3 * statistics.median(times) for times in (result.diffusers_times, result.isoframe_times)
    )
    return (
        f"{result.case.name:16} diffusers {diffusers:8.1f} ms  isoframe {isoframe:8.1f} ms  "
        f"ratio {result.ratio:.3f} (limit {result.case.max_ratio:.2f}: {verdict}; error {result.error:.1e})"
    )


def _append(path: Path, results: "list[ForwardResult]") -> None:
    from .rows import BenchRow, Gate, append_rows

    append_rows(
        path,
        [
            BenchRow(
                case=f"forward-{result.case.name}",
                variant=variant,
                shape=(
                    result.num_latent_tokens,
                    result.case.shape.num_text_tokens + result.case.shape.num_image_tokens,
                ),
                dtype=str(result.case.dtype).removeprefix("torch."),
                unit=unit,
                values=values,
                gate=Gate(
                    is_green=True, text=f"relative error {result.error:.2e} <= {result.case.max_error:.0e}"
                ),
            )
            for result in results
            for variant, unit, values in (
                ("diffusers", "s", result.diffusers_times),
                ("isoframe", "s", result.isoframe_times),
                ("isoframe/diffusers", "ratio", (result.ratio,)),
            )
        ],
    )
