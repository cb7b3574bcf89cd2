"""Finished videos: ``isoframe export`` writes one as another file, ``reproduce`` makes one again and compares."""

import tempfile
from dataclasses import replace
from pathlib import Path

import typer

from ...files import TEMPORARY_FOLDER
from ...request.config import EngineConfig
from ...request.fields import JOB, OUTPUT, needed, setting
from .terminal import options
from .terminal.command import Asked, command
from .terminal.printing import echo

INCONCLUSIVE = 3


@command(asked=("codec", "crf"))
def export(
    asked: Asked,
    video: Path = needed("An MP4.", option="VIDEO"),
    out: Path = needed("The file to write: .gif, .webp or .mp4.", option="--out -o", panel=OUTPUT),
    interpolate: int = setting(
        1,
        "So many times as many frames per second. The frames between are made up by FFmpeg's minterpolate, a post-process "
        "without a model.",
        metavar="FACTOR", panel=OUTPUT,
    ),
    overwrite: bool = options.OVERWRITE,
) -> None:  # fmt: skip
    """Write a video as an animated GIF or WebP, in another codec, or with more frames per second."""
    from ...media.exports import export_video

    made = export_video(video, out, interpolate=interpolate, overwrite=overwrite, **asked)
    echo(f"{made.path}: {made.num_frames} frames, {made.fps:g} per second, {made.seconds:.1f} s")


@command(config=("device", "vram", "ram", "cache_dir", "local_files_only"))
def reproduce(
    config: EngineConfig,
    file: Path = needed("An MP4 of isoframe, or a PNG of one of its frames.", option="FILE"),
    image: Path | None = setting(None, "The start image (default: by its name).", panel=JOB),
    model: str | None = setting(
        None, "The model, if it was a folder or file (default: by its name).", option="--model -m", panel=JOB
    ),
    files: Path | None = setting(
        None,
        "Folder of its images, video and LoRAs (default: that of FILE, then this one).",
        metavar="DIR",
        panel=JOB,
    ),
    out: Path | None = setting(None, "Keep the new video here.", option="--out -o", panel=OUTPUT),
    overwrite: bool = options.OVERWRITE,
    frame_filter: str | None = options.FRAME_FILTER,
    quiet: bool = options.QUIET,
) -> None:
    """Make a video again from its metadata; checks the hashes of image, model and LoRAs, and compares every frame.

    Exits with 0 if all frames are identical, with 3 if they differ and so do device, precision or versions, else with 1.
    """
    from ... import Engine
    from ...generation.frame_filter import load_filter
    from ...reproduction import Recipe
    from ...reproduction import reproduce as make_again
    from .terminal.progress import reporting

    recipe = Recipe.read(file)
    request = recipe.request(image, files or file.parent)
    config = replace(config, precision=recipe.metadata["precision"])
    with (
        tempfile.TemporaryDirectory(prefix=TEMPORARY_FOLDER) as folder,
        Engine.load(
            model or recipe.metadata["model"],
            config=config,
            frame_filter=None if frame_filter is None else load_filter(frame_filter),
        ) as engine,
        reporting(fps=request.fps, is_json=False, is_quiet=quiet) as report,
    ):
        again = out or Path(folder) / "again.mp4"
        made = make_again(engine, recipe, request, again, overwrite=overwrite, on_event=report)
    for difference in made.differences:
        echo(difference)
    if made.is_identical:
        echo(f"{file}: reproduced, {made.num_frames} of {made.num_frames} frames are identical")
        return
    echo(
        f"{file}: not reproduced, {made.num_different} of {made.num_frames} frames differ (PSNR {made.psnr:.1f} dB)"
    )
    raise typer.Exit(INCONCLUSIVE if made.differences else 1)
