"""``isoframe bench peers``: a section or a video of ours beside one of diffusers'."""

from pathlib import Path
from typing import Annotated

import typer

from ..engine.commands import options

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
    from ..engine.commands.failures import readable_errors
    from ..engine.config import ORDERS, check_choice
    from ..engine.device import resolve_device
    from .peers import MAX_ERRORS
    from .peers_view import PeersView

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
