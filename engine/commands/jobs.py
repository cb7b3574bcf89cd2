"""``isoframe jobs``: what jobs are kept, and giving up those that are done."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import EngineConfig
from . import options
from .failures import readable_errors

if TYPE_CHECKING:
    from ..job_folder import JobFolder, JobStatus

app = typer.Typer(help="Jobs that are kept on the disk.", no_args_is_help=True)


@app.command("list")
def list_all(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    cache_dir: options.CacheDir = None,
    debug: options.Debug = False,
) -> None:
    """List the jobs in the cache folder: their state, their sections and their videos."""
    from ..errors import InputError
    from ..job_list import list_jobs

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
    from ..errors import InputError
    from ..job_list import list_jobs

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
