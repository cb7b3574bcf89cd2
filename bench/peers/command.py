"""``isoframe bench`` peers and forward: a section or a video, or one step, of ours beside diffusers'."""

from typing import Annotated

import typer

from ...engine.request.config import ORDERS, check_choice
from ..records.command_options import Cases, JsonFile, append, check_choices, command, options

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


@command()
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
    json_file: JsonFile = None,
) -> None:
    """Run diffusers' FramePack and ours on the same weights and inputs, in turn: a section, or a whole video.

    Both must give the same latents or frames, else nothing is timed and the exit code is 1.
    """
    from ...engine.device import resolve_device
    from .peer_section import MAX_ERRORS
    from .peers_bench import PeersBench

    check_choice("--what", what, ("section", "pipeline"))
    check_choice("--order", order, ORDERS)
    found = resolve_device(device)
    precisions = precision or ["fp32" if found.type == "cpu" else "bf16"]
    check_choices("--precision", precisions, list(MAX_ERRORS))
    bench = PeersBench(model=model, device=found, size=options.parse_size(size), steps=steps, repeats=repeats)
    for name in precisions:
        if what == "section":
            line, rows = bench.compare_sections(name)
        else:
            line, rows = bench.compare_videos(
                name, seconds=seconds, order=order, is_offloaded=offload, vram=vram
            )
        typer.echo(line)
        append(json_file, rows)


@command()
def forward(
    case: Cases = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Steps of each; the median counts.")] = 20,
    json_file: JsonFile = None,
) -> None:
    """Time one denoising step against diffusers' class, same weights, on the CPU; exit 1 above the limit."""
    from . import peer_step as step

    check_choices("--case", case, list(step.CASES))
    results = {}
    for name in case or step.CASES:
        results[name] = step.compare_steps(step.CASES[name], repeats)
        typer.echo(step.describe(step.CASES[name], results[name]))
    append(json_file, step.forward_rows(results))
    if any(result.ratio > step.CASES[name].max_ratio for name, result in results.items()):
        raise typer.Exit(1)
