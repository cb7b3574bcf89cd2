"""``isoframe bench step``: the pace of denoising by precision, attention and step cache."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..engine.commands import options

if TYPE_CHECKING:
    from .step_bench import StepResult

_HEADER = (
    f"{'precision':12}{'attention':14}{'step cache':11}{'s/it':>9}{'s/frame':>9}{'s/section':>10}"
    f"{'TFLOP/s':>9}{'computed':>9}{'of card':>8}{'error':>9}"
)


_Weights = Annotated[
    str, typer.Option("--weights", help="model, or random: the shape of --model without its files.")
]
_Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="demo, framepack-13b, a Hub id or a folder (default: demo; with random weights framepack-13b).",
    ),
]
_Sections = Annotated[
    int, typer.Option("--sections", min=2, help="Of which the first warms up and does not count.")
]
_Precision = Annotated[
    list[str] | None,
    typer.Option("--precision", help="Repeatable; results are compared with those of the first."),
]
_Attention = Annotated[list[str] | None, typer.Option("--attention", help="Repeatable.")]
_StepCache = Annotated[list[str] | None, typer.Option("--step-cache", help="Repeatable.")]
_JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
]


def step(
    weights: _Weights = "model",
    model: _Model = None,
    size: options.Size = None,
    steps: options.Steps = 25,
    sections: _Sections = 4,
    precision: _Precision = None,
    attention: _Attention = None,
    step_cache: _StepCache = None,
    device: options.Device = "auto",
    vram: options.Vram = None,
    ram: options.Ram = None,
    json_file: _JsonFile = None,
    debug: options.Debug = False,
) -> None:
    """Denoise some sections, without VAE and file: s/it, s/frame, s/section. Exit 1 where an operation is wrong."""
    from ..engine.commands.failures import readable_errors
    from ..engine.config import EngineConfig, check_choice
    from ..engine.device import resolve_device
    from .rows import append_rows
    from .step_bench import StepBench, Variant

    with readable_errors(debug=debug):
        check_choice("--weights", weights, ("model", "random"))
        bench = StepBench(
            source=model or ("framepack-13b" if weights == "random" else "demo"),
            is_random=weights == "random",
            size=options.parse_size(size),
            num_steps=steps,
            num_sections=sections,
            config=EngineConfig(device=str(resolve_device(device)), vram=vram, ram=ram),
        )
        typer.echo(f"{bench.describe()}; {bench.gate.text}")
        if not bench.gate.is_green:
            # A pace of wrong results would be believed.
            raise typer.Exit(1)
        typer.echo(_HEADER)
        fallback = "fp32" if resolve_device(device).type == "cpu" else "bf16"
        for names in product(precision or [fallback], attention or ["auto"], step_cache or ["none"]):
            result = bench.run(Variant(precision=names[0], attention=names[1], step_cache=names[2]))
            typer.echo(_line(result))
            for reason in result.reasons:
                typer.echo(f"  {reason}")
        if json_file is not None:
            append_rows(json_file, bench.rows())


def _line(result: "StepResult") -> str:
    variant, pace = result.variant, result.pace
    share = "-" if result.share is None else f"{result.share:.0%}"
    return (
        f"{variant.precision:12}{variant.attention:14}{variant.step_cache:11}{pace.step:9.4g}{pace.frame:9.4g}"
        f"{pace.section:10.4g}{pace.flops / 1e12:9.4g}{pace.computed_share:9.0%}{share:>8}{result.error:9.1e}"
    )
