"""``isoframe bench peers``: a section of ours beside one of diffusers'."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..engine.commands import options

if TYPE_CHECKING:
    import torch

    from .peers import PeerResult
    from .rows import Setting


def peers(
    model: options.Model = "demo",
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision", help="fp32 or bf16; repeatable (default: fp32 on the CPU, bf16 on CUDA)."
        ),
    ] = None,
    size: options.Size = None,
    steps: options.Steps = 25,
    repeats: Annotated[int, typer.Option("--repeats", min=2, help="Sections of each, in turn.")] = 10,
    device: options.Device = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Denoise one section with diffusers' transformer and with ours, same weights and inputs, alternating.

    Both must give the same latents, else nothing is timed and the exit code is 1.
    """
    from ..engine.commands.failures import readable_errors
    from ..engine.config import check_choice
    from ..engine.device import resolve_device
    from .peers import MAX_ERRORS, compare_sections

    with readable_errors(debug=debug):
        found = resolve_device(device)
        precisions = precision or ["fp32" if found.type == "cpu" else "bf16"]
        for name in precisions:
            check_choice("--precision", name, MAX_ERRORS)
        for name in precisions:
            result = compare_sections(
                model,
                device=found,
                precision=name,
                size=options.parse_size(size),
                num_steps=steps,
                repeats=repeats,
            )
            typer.echo(_line(model, name, result))
            if json_file is not None:
                settings: dict[str, Setting] = {"model": model, "steps": steps, "size": size or "auto"}
                _append(json_file, result, found, name, MAX_ERRORS[name], settings)


def _line(model: str, precision: str, result: "PeerResult") -> str:
    theirs, ours = (statistics.median(times) for times in (result.diffusers_times, result.isoframe_times))
    low, high = result.interval
    return (
        f"{model} {precision}: diffusers {theirs:.4g} s/section  isoframe {ours:.4g} s/section  ratio {result.ratio:.3f} "
        f"(95 % {low:.3f} to {high:.3f}; pairs {result.spread[0]:.3f} to {result.spread[1]:.3f}; error {result.error:.1e})"
    )


def _append(
    path: Path,
    result: "PeerResult",
    device: "torch.device",
    precision: str,
    max_error: float,
    settings: "dict[str, Setting]",
) -> None:
    from .environment import read_environment
    from .rows import BenchRow, Gate, append_rows, now, this_command

    variants = (
        ("diffusers", "s/section", result.diffusers_times),
        ("isoframe", "s/section", result.isoframe_times),
        ("isoframe/diffusers", "ratio", (result.ratio,)),
    )
    append_rows(
        path,
        [
            BenchRow(
                case="peers-section",
                variant=variant,
                shape=(),
                dtype={"fp32": "float32", "bf16": "bfloat16"}[precision],
                precision=precision,
                unit=unit,
                values=values,
                gate=Gate(
                    is_green=True, text=f"relative RMS of the latents {result.error:.2e} <= {max_error:.0e}"
                ),
                settings={**settings, "device": str(device)},
                environment=read_environment(),
                command=this_command(),
                date=now(),
            )
            for variant, unit, values in variants
        ],
    )
