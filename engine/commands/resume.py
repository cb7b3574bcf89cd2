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
    from ..job_list import find_job

    with readable_errors(debug=debug, is_json=json_progress):
        folder = find_job(job, EngineConfig(cache_dir=cache_dir).cache_path())
        record = folder.record
        output = record.output if out is None else out
        Rendering(
            request=record.request, model=record.source.model, config=record.source.config,
            components=record.source.components, out=output,
            is_overwriting=overwrite or folder.may_replace(output), preview_dir=preview,
            job_dir=folder.path, frame_filter=frame_filter, is_json=json_progress, is_quiet=quiet,
        ).run()  # fmt: skip
