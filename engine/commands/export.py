"""``isoframe export``: another file of a finished video."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from . import options
from .failures import readable_errors
from .options import DEFAULTS

Target = Annotated[
    Path,
    Option("--out", "-o", help="The file to write: .gif, .webp or .mp4.", rich_help_panel=options.OUTPUT),
]
Interpolate = Annotated[
    int,
    Option(
        "--interpolate",
        metavar="FACTOR",
        help="So many times as many frames per second. The frames between are made up by FFmpeg's minterpolate, a "
        "post-process without a model.",
        rich_help_panel=options.OUTPUT,
    ),
]


def export(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="An MP4.")],
    out: Target,
    interpolate: Interpolate = 1,
    codec: options.Codec = DEFAULTS.codec,
    crf: options.Crf = DEFAULTS.crf,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,
) -> None:
    """Write a video as an animated GIF or WebP, in another codec, or with more frames per second."""
    from ..exports import export_video

    with readable_errors(debug=debug):
        made = export_video(
            video, out, interpolate=interpolate, codec=codec, crf=crf, overwrite=overwrite
        )  # fmt: skip
        typer.echo(f"{made.path}: {made.num_frames} frames, {made.fps:g} per second, {made.seconds:.1f} s")
