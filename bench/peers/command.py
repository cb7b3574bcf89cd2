"""``isoframe bench forward``: one denoising step against diffusers' class.

``isoframe bench peers``: a section or a video of ours beside one of diffusers'.
"""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...engine.interfaces.commands.terminal import options

if TYPE_CHECKING:
    from .step import ForwardResult


_What = Annotated[
    str,
    typer.Option(
        "--what", help="section (one section's denoising) or pipeline (from prompt and image to the frames)."
    ),
]
_Precision = Annotated[
    list[str] | None,
    typer.Option("--precision", help="fp32 or bf16; repeatable (default: fp32 on the CPU, bf16 on CUDA)."),
]
_Repeats = Annotated[int, typer.Option("--repeats", min=2, help="Of each, in turn.")]
_Seconds = Annotated[float, typer.Option("--seconds", help="With pipeline: length of the video.")]
_Order = Annotated[str, typer.Option("--order", help="With pipeline: forward or inverted.")]
_Offload = Annotated[
    bool,
    typer.Option("--offload", help="With pipeline on CUDA: diffusers' group offloading, ours inside --vram."),
]
_JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
]


def peers(
    what: _What = "section",
    model: options.Model = "demo",
    precision: _Precision = None,
    size: options.Size = None,
    steps: options.Steps = 25,
    seconds: _Seconds = 2.4,
    order: _Order = "forward",
    repeats: _Repeats = 10,
    offload: _Offload = False,
    vram: options.Vram = None,
    device: options.Device = "auto",
    json_file: _JsonFile = None,
    debug: options.Debug = False,
) -> None:
    """Run diffusers' FramePack and ours on the same weights and inputs, in turn: a section, or a whole video.

    Both must give the same latents or frames, else nothing is timed and the exit code is 1.
    """
    from ...engine.device import resolve_device
    from ...engine.interfaces.commands.terminal.failures import readable_errors
    from ...engine.request.config import ORDERS, check_choice
    from .printed_peers import PeersView
    from .section import MAX_ERRORS

    with readable_errors(debug=debug):
        check_choice("--what", what, ("section", "pipeline"))
        check_choice("--order", order, ORDERS)
        found = resolve_device(device)
        precisions = precision or ["fp32" if found.type == "cpu" else "bf16"]
        for name in precisions:
            check_choice("--precision", name, MAX_ERRORS)
        view = PeersView(
            model=model,
            device=found,
            size=options.parse_size(size),
            steps=steps,
            repeats=repeats,
            json_file=json_file,
        )
        for name in precisions:
            if what == "section":
                typer.echo(view.show_section(name))
            else:
                typer.echo(
                    view.show_pipeline(name, seconds=seconds, order=order, is_offloaded=offload, vram=vram)
                )


def forward(
    case: Annotated[list[str] | None, typer.Option("--case", help="Only this case; repeatable.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Steps of each; the median counts.")] = 20,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
    ] = None,
) -> None:
    """Time one denoising step against diffusers' class, same weights, on the CPU; exit 1 above the limit."""
    from ...engine.interfaces.commands.terminal.failures import readable_errors
    from ...engine.request.config import check_choice
    from .step import CASES, compare_forward

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
    from ..records.rows import BenchRow, Gate, append_rows

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
