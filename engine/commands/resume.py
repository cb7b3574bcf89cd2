"""``isoframe resume``: finish a job that was stopped."""

from pathlib import Path
from typing import Annotated

import typer

from ..config import EngineConfig
from . import options
from .failures import readable_errors
from .rendering import Rendering

Job = Annotated[
    str, typer.Argument(metavar="JOB", help="Folder of the job, or its name in `isoframe jobs list`.")
]
JobOut = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Another MP4 than the job was started with.", rich_help_panel=options.OUTPUT
    ),
]


def resume(
    job: Job,
    out: JobOut = None,
    overwrite: options.Overwrite = False,
    preview: options.Preview = None,
    frame_filter: options.FrameFilter = None,
    json_progress: options.JsonProgress = False,
    quiet: options.Quiet = False,
    cache_dir: options.CacheDir = None,
    debug: options.Debug = False,
) -> None:
    """Finish a job that was stopped or killed, bit for bit as if it had never stopped."""
    with readable_errors(debug=debug, is_json=json_progress):
        rendering_of(
            job, out=out, is_overwriting=overwrite, preview_dir=preview, is_json=json_progress, is_quiet=quiet,
            cache_dir=cache_dir, frame_filter=frame_filter,
        ).run()  # fmt: skip


def rendering_of(
    job: str,
    *,
    out: Path | None,
    is_overwriting: bool,
    preview_dir: Path | None,
    is_json: bool,
    is_quiet: bool,
    cache_dir: Path | None,
    frame_filter: str | None = None,
) -> Rendering:
    """What is left to do of ``job``, with the model and the settings it was started with."""
    from ..job_list import find_job

    folder = find_job(job, EngineConfig(cache_dir=cache_dir).cache_path())
    record = folder.record
    output = record.output if out is None else out
    return Rendering(
        request=record.request, model=record.source.model, config=record.source.config,
        components=record.source.components, out=output,
        is_overwriting=is_overwriting or folder.may_replace(output), preview_dir=preview_dir,
        job_dir=folder.path, frame_filter=frame_filter, is_json=is_json, is_quiet=is_quiet,
    )  # fmt: skip
