"""``isoframe jobs``: what jobs are kept, and giving up those that are done.

``isoframe resume``: finish a job that was stopped.

``isoframe redo``: make the end of a job again, with another seed or prompt.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from ...request.config import EngineConfig
from .terminal import options
from .terminal.failures import readable_errors
from .terminal.video_command import Rendering

if TYPE_CHECKING:
    from ...jobs.folder import JobFolder, JobStatus


app = typer.Typer(help="Jobs that are kept on the disk.", no_args_is_help=True)


@app.command("list")
def list_all(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    cache_dir: options.CacheDir = None,
    debug: options.Debug = False,
) -> None:
    """List the jobs in the cache folder: their state, their sections and their videos."""
    from ...errors import InputError
    from ...jobs.folder import list_jobs

    with readable_errors(debug=debug):
        for job in list_jobs(EngineConfig(cache_dir=cache_dir).cache_path()):
            if isinstance(job, InputError):
                typer.echo(f"unreadable: {job}", err=True)
            elif as_json:
                typer.echo(json.dumps(_describe(job)))
            else:
                status = job.status()
                progress = f"{status.num_finished_sections}/{status.num_sections} sections"
                typer.echo(f"{job.path.name}  {_state(status):7}  {progress}  {job.record.output}")


@app.command()
def clean(
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also remove jobs that could still be resumed.")
    ] = False,
    cache_dir: options.CacheDir = None,
    debug: options.Debug = False,
) -> None:
    """Remove the folders of jobs that are done; their videos stay, redo is not possible any more."""
    from ...errors import InputError
    from ...jobs.folder import list_jobs

    with readable_errors(debug=debug):
        for job in list_jobs(EngineConfig(cache_dir=cache_dir).cache_path()):
            if isinstance(job, InputError):
                typer.echo(f"left: {job}", err=True)
                continue
            status = job.status()
            if not status.is_running and (status.is_done or unfinished):
                job.delete()
                typer.echo(f"removed {job.path}")


def _describe(job: "JobFolder") -> dict[str, object]:
    status = job.status()
    return {
        "name": job.path.name,
        "path": str(job.path),
        "state": _state(status),
        **dataclasses.asdict(status),
        "output": str(job.record.output),
        "prompt": job.record.request.prompt,
    }


def _state(status: "JobStatus") -> str:
    if status.is_running:
        return "running"
    return "done" if status.is_done else "stopped"


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
    from ...jobs.folder import find_job

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


Section = Annotated[
    int,
    Option(
        "--section",
        "-k",
        help="First section to make again, counted from 1 in the order in which they are made. With the inverted order "
        "the first one is the end of the video.",
        rich_help_panel=options.JOB,
    ),
]
NewSeed = Annotated[
    int | None,
    Option(
        "--seed",
        help="Seed of that section's noise; later sections keep theirs.",
        rich_help_panel=options.SAMPLING,
    ),
]
NewPrompt = Annotated[
    str | None,
    Option("--prompt", "-p", help="Prompt of that section and all later ones.", rich_help_panel=options.JOB),
]


def redo(
    job: Job,
    section: Section,
    seed: NewSeed = None,
    prompt: NewPrompt = None,
    out: JobOut = None,
    overwrite: options.Overwrite = False,
    preview: options.Preview = None,
    frame_filter: options.FrameFilter = None,
    json_progress: options.JsonProgress = False,
    quiet: options.Quiet = False,
    cache_dir: options.CacheDir = None,
    debug: options.Debug = False,
) -> None:
    """Make a section of a job and all later ones again, with another seed or prompt.

    Needs --out or --overwrite where the video exists. A later redo of an earlier section forgets this one.
    """
    from ...files import check_video_path
    from ...jobs.folder import find_job
    from ...request.config import EngineConfig

    with readable_errors(debug=debug, is_json=json_progress):
        folder = find_job(job, EngineConfig(cache_dir=cache_dir).cache_path())
        # Nothing is given up for a video that then cannot be written.
        check_video_path(folder.record.output if out is None else out, overwrite=overwrite)
        folder.redo(section - 1, seed=seed, prompt=prompt)
    resume(job, out, overwrite, preview, frame_filter, json_progress, quiet, cache_dir, debug)
