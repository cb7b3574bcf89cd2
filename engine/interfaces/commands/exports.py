"""Finished videos: ``isoframe export`` writes one as another file, ``reproduce`` makes one again and compares."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from ...request.config import EngineConfig
from .terminal import options
from .terminal.command import Asked, command

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


@command(asked=("codec", "crf"))
def export(
    asked: Asked,
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="An MP4.")],
    out: Target,
    interpolate: Interpolate = 1,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a video as an animated GIF or WebP, in another codec, or with more frames per second."""
    from ...media.exports import export_video

    made = export_video(video, out, interpolate=interpolate, overwrite=overwrite, **asked)
    typer.echo(f"{made.path}: {made.num_frames} frames, {made.fps:g} per second, {made.seconds:.1f} s")


INCONCLUSIVE = 3

Source = Annotated[
    Path, typer.Argument(metavar="FILE", help="An MP4 of isoframe, or a PNG of one of its frames.")
]
StartImage = Annotated[
    Path | None,
    Option(
        "--image",
        help="The start image (default: by its name).",
        rich_help_panel=options.JOB,
    ),
]
OtherModel = Annotated[
    str | None,
    Option(
        "--model",
        "-m",
        help="The model, if it was a folder or file (default: by its name).",
        rich_help_panel=options.JOB,
    ),
]
Files = Annotated[
    Path | None,
    Option(
        "--files",
        metavar="DIR",
        help="Folder of its images, video and LoRAs (default: that of FILE, then this one).",
        rich_help_panel=options.JOB,
    ),
]
NewOut = Annotated[
    Path | None, Option("--out", "-o", help="Keep the new video here.", rich_help_panel=options.OUTPUT)
]


@command(config=("device", "vram", "ram", "cache_dir", "local_files_only"))
def reproduce(
    file: Source,
    config: EngineConfig,
    image: StartImage = None,
    model: OtherModel = None,
    files: Files = None,
    out: NewOut = None,
    overwrite: options.Overwrite = False,
    frame_filter: options.FrameFilter = None,
    quiet: options.Quiet = False,
) -> None:
    """Make a video again from its metadata; checks the hashes of image, model and LoRAs, and compares every frame.

    Exits with 0 if all frames are identical, with 3 if they differ and so do device, precision or versions, else with 1.
    """
    from ... import Engine
    from ...generation.frame_filter import load_filter
    from ...reproduction import Recipe
    from ...reproduction import reproduce as make_again
    from .terminal.progress import make_reporter

    recipe = Recipe.read(file)
    request = recipe.request(image, files or file.parent)
    config = replace(config, precision=recipe.metadata["precision"])
    with (
        tempfile.TemporaryDirectory(prefix="isoframe-") as folder,
        Engine.load(
            model or recipe.metadata["model"],
            config=config,
            frame_filter=None if frame_filter is None else load_filter(frame_filter),
        ) as engine,
        make_reporter(fps=request.fps, is_json=False, is_quiet=quiet) as reporter,
    ):
        made = make_again(
            engine, recipe, request, out or Path(folder) / "again.mp4", overwrite=overwrite,
            on_event=reporter.on_event,
        )  # fmt: skip
    for difference in made.differences:
        typer.echo(difference)
    if made.is_identical:
        typer.echo(f"{file}: reproduced, {made.num_frames} of {made.num_frames} frames are identical")
        return
    typer.echo(
        f"{file}: not reproduced, {made.num_different} of {made.num_frames} frames differ (PSNR {made.psnr:.1f} dB)"
    )
    raise typer.Exit(INCONCLUSIVE if made.differences else 1)
