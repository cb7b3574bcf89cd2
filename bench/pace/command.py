"""``isoframe bench step``: the pace of denoising by precision, attention and step cache."""

from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from ...engine.request.config import EngineConfig, check_choice
from ..records.command_options import ResultFiles, SomeModel, Weights, command, options

if TYPE_CHECKING:
    from .step_bench import StepBench
    from .step_pace import Variant

_Sections = Annotated[
    int, typer.Option("--sections", min=2, help="Of which the first warms up and does not count.")
]
_Precision = Annotated[
    list[str] | None,
    typer.Option("--precision", help="Repeatable; results are compared with those of the first."),
]
_Attention = Annotated[list[str] | None, typer.Option("--attention", help="Repeatable.")]
_StepCache = Annotated[list[str] | None, typer.Option("--step-cache", help="Repeatable.")]


@command()
def step(
    output: ResultFiles,
    weights: Weights = "model",
    model: SomeModel = None,
    size: options.Size = None,
    steps: options.Steps = 25,
    sections: _Sections = 4,
    precision: _Precision = None,
    attention: _Attention = None,
    step_cache: _StepCache = None,
    device: options.Device = "auto",
    vram: options.Vram = None,
    ram: options.Ram = None,
) -> None:
    """Denoise some sections, without VAE and file: s/it, s/frame, s/section. Exit 1 where an operation is wrong."""
    from ...engine.device import resolve_device
    from .pace_rows import write_step_report
    from .step_bench import StepBench
    from .step_pace import Variant

    check_choice("--weights", weights, ("model", "random"))
    output.check()
    found = resolve_device(device)
    bench = StepBench(
        source=model or ("framepack-13b" if weights == "random" else "demo"),
        is_random=weights == "random",
        size=options.parse_size(size),
        num_steps=steps,
        num_sections=sections,
        config=EngineConfig(device=str(found), vram=vram, ram=ram),
    )
    typer.echo(f"{bench.describe()}; {bench.gate.text}")
    if not bench.gate.is_green:
        # A pace of wrong results would be believed.
        raise typer.Exit(1)
    fallback = "fp32" if found.type == "cpu" else "bf16"
    chosen = product(precision or [fallback], attention or ["auto"], step_cache or ["none"])
    variants = [
        Variant(precision=name, attention=backend, step_cache=cache) for name, backend, cache in chosen
    ]
    is_right = _run(bench, variants)
    if bench.results:
        rows = bench.rows()
        output.store(rows, lambda path: write_step_report(path, bench.describe(), bench.results, rows))
    if not is_right:
        raise typer.Exit(1)


def _run(bench: "StepBench", variants: "list[Variant]") -> bool:
    """Measure and print the variants whose step is right; whether all are."""
    from .pace_rows import HEADER, line

    typer.echo(HEADER)
    is_right = True
    for variant in variants:
        gate = bench.check(variant)
        if not gate.is_green:
            typer.echo(
                f"{variant.precision:12}{variant.attention:14}{variant.step_cache:11}WRONG: {gate.text}"
            )
            is_right = False
            continue
        result = bench.run(variant, gate)
        typer.echo(line(result))
        for reason in result.reasons:
            typer.echo(f"  {reason}")
    return is_right
