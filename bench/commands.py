"""Sub-commands of ``isoframe bench``. Each imports its measurement when it is called."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .quality_command import quality

if TYPE_CHECKING:
    from .environment import Environment
    from .forward import ForwardResult
    from .rows import BenchRow

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
]

app = typer.Typer(
    name="bench",
    help="Measure speed and quality on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Keep the sub-command's name needed while there is only one."""


app.command()(quality)


@app.command()
def forward(
    case: Annotated[list[str] | None, typer.Option("--case", help="Only this case; repeatable.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Steps of each; the median counts.")] = 20,
    json_file: JsonFile = None,
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
    return (
        f"{result.name:16} diffusers {result.diffusers_seconds * 1e3:8.1f} ms  "
        f"isoframe {result.isoframe_seconds * 1e3:8.1f} ms  ratio {result.ratio:.3f} "
        f"(limit {result.max_ratio:.2f}: {verdict}; error {result.error:.1e})"
    )


def _append(path: Path, results: "list[ForwardResult]") -> None:
    from .environment import read_environment
    from .rows import append_rows

    environment = read_environment()
    append_rows(path, [row for result in results for row in _forward_rows(result, environment)])


def _forward_rows(result: "ForwardResult", environment: "Environment") -> "list[BenchRow]":
    from .forward import CASES
    from .rows import BenchRow, now, this_command

    case = CASES[result.name]
    quantities = (
        ("diffusers", "s", result.diffusers_seconds),
        ("isoframe", "s", result.isoframe_seconds),
        ("isoframe/diffusers", "ratio", result.ratio),
    )
    return [
        BenchRow(
            case=f"forward-{result.name}",
            variant=variant,
            shape=(result.num_latent_tokens, result.num_condition_tokens),
            dtype=str(case.dtype).removeprefix("torch."),
            unit=unit,
            values=(value,),
            gate=f"relative error {result.error:.2e} <= {case.max_error:.0e}",
            environment=environment,
            command=this_command(),
            date=now(),
        )
        for variant, unit, value in quantities
    ]
