"""Kept jobs: ``isoframe jobs`` lists and removes them, ``resume`` finishes one, ``redo`` makes its end again."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ...jobs.state import JobState
from ...request.config import EngineConfig
from ...request.fields import JOB, OUTPUT, needed, setting
from .terminal.command import command
from .terminal.interrupt import Interrupt
from .terminal.options import JSON, OutputOptions
from .terminal.printing import echo, printable
from .terminal.video_command import VideoCommand

if TYPE_CHECKING:
    from ...jobs.folder import JobFolder, JobStatus


app = typer.Typer(help="Jobs that are kept on the disk.", no_args_is_help=True)


@app.command("list")
@command(config=("cache_dir",))
def list_all(config: EngineConfig, as_json: bool = JSON) -> None:
    """List the jobs in the cache folder: their state, their sections and their videos."""
    for job in _readable(config, "unreadable"):
        if as_json:
            typer.echo(json.dumps(_describe(job)))
        else:
            status = job.status()
            progress = f"{status.num_finished_sections}/{status.num_sections} sections"
            path = printable(job.record.output, is_line=True)
            echo(f"{job.path.name}  {_state(status):7}  {progress}  {path}")


@app.command()
@command(config=("cache_dir",))
def clean(
    config: EngineConfig,
    unfinished: bool = setting(False, "Also remove jobs that could still be resumed.", panel=None),
) -> None:
    """Remove the folders of jobs that are done; their videos stay, redo is not possible any more."""
    for job in _readable(config, "left"):
        status = job.status()
        if not status.is_running and (status.is_done or unfinished):
            job.delete()
            echo(f"removed {job.path}")


def _readable(config: EngineConfig, otherwise: str) -> Iterator["JobFolder"]:
    """The jobs in the cache folder; those that cannot be read are told after the word ``otherwise``."""
    from ...errors import InputError
    from ...jobs.folder import list_jobs

    for job in list_jobs(config.cache_path()):
        if isinstance(job, InputError):
            echo(f"{otherwise}: {job}", err=True)
        else:
            yield job


def _describe(job: "JobFolder") -> dict[str, object]:
    status = job.status()
    return {
        "name": job.path.name,
        "path": str(job.path),
        "state": _state(status),
        **asdict(status),
        "output": str(job.record.output),
        "prompt": job.record.request.prompt,
    }


def _state(status: "JobStatus") -> JobState:
    if status.is_running:
        return JobState.RUNNING
    return JobState.DONE if status.is_done else JobState.STOPPED


_JOB: str = needed("Folder of the job, or its name in `isoframe jobs list`.", option="JOB")
_OUT: Path | None = setting(
    None, "Another MP4 than the job was started with.", option="--out -o", panel=OUTPUT
)


@command(config=("cache_dir",))
def resume(
    outputs: OutputOptions,
    config: EngineConfig,
    interrupt: Interrupt,
    job: str = _JOB,
    out: Path | None = _OUT,
    accept_changes: bool = setting(
        False, "Go on as job.json says now, though it was edited; the video tells it.", panel=JOB
    ),
) -> None:
    """Finish a job that was stopped or killed, bit for bit as if it had never stopped."""
    from ...jobs.folder import find_job

    _finish(find_job(job, config.cache_path(), accepts_changes=accept_changes), out, outputs, interrupt)


@command(config=("cache_dir",))
def redo(
    outputs: OutputOptions,
    config: EngineConfig,
    interrupt: Interrupt,
    job: str = _JOB,
    section: int = needed(
        "First section to make again, counted from 1 in the order in which they are made. With the inverted order the first "
        "one is the end of the video.",
        option="--section -k", panel=JOB,
    ),
    seed: int | None = setting(None, "Seed of that section's noise; later sections keep theirs."),
    prompt: str | None = setting(
        None, "Prompt of that section and all later ones.", option="--prompt -p", panel=JOB
    ),
    out: Path | None = _OUT,
) -> None:  # fmt: skip
    """Make a section of a job and all later ones again, with another seed or prompt.

    Needs --out or --overwrite where the video exists. A later redo of an earlier section forgets this one.
    """
    from ...jobs.folder import find_job
    from ...output_paths import check_video_path

    folder = find_job(job, config.cache_path())
    # Nothing is given up for a video that then cannot be written.
    check_video_path(out or folder.record.output, overwrite=outputs.overwrite)
    folder.redo(section - 1, seed=seed, prompt=prompt)
    _finish(folder, out, outputs, interrupt)


def _finish(folder: "JobFolder", out: Path | None, outputs: OutputOptions, interrupt: Interrupt) -> None:
    record = folder.record
    output = out or record.output
    VideoCommand(
        request=record.request, model=record.source.model, config=record.source.config,
        components=record.source.components, out=output, job_dir=folder.path,
        outputs=replace(outputs, overwrite=outputs.overwrite or folder.may_replace(output)),
    ).run(interrupt)  # fmt: skip
