"""``isoframe generate``: an image and a prompt in, an MP4 out."""

from pathlib import Path

import typer

from ...errors import ConfigError
from ...jobs.paths import new_job_path
from ...request.config import PRESETS, EngineConfig, Request, check_choice
from ...request.fields import OUTPUT, needed, setting
from .terminal import options
from .terminal.command import Asked, command
from .terminal.interrupt import Interrupt
from .terminal.video_command import VideoCommand


@command(asked=options.ASKED, config=options.CONFIG)
def generate(
    context: typer.Context,
    asked: Asked,
    interrupt: Interrupt,
    config: EngineConfig,
    outputs: options.OutputOptions,
    out: Path = needed("The MP4 to write.", option="--out -o", panel=OUTPUT),
    model: str = options.MODEL,
    preset: str | None = setting(
        None,
        "draft (15 steps, magcache), balanced (25 steps, magcache) or final (25 steps, no cache); --steps and --step-cache go "
        "before it.",
    ),
    report_error: bool = setting(
        False, "Afterwards make the first section with and without the step cache and print the difference."
    ),
    job: Path | None = setting(
        None,
        "Folder that keeps every finished section, for `isoframe resume` and `isoframe redo` (default: a new one in the "
        "cache folder). A folder of the same job is continued.",
        metavar="DIR", panel=OUTPUT,
    ),
    no_job: bool = options.NO_JOB,
    component: list[str] | None = options.COMPONENT,
) -> None:  # fmt: skip
    """Generate a video from an image and a prompt."""
    VideoCommand(
        request=Request(**asked | _preset(preset, context)), model=model, config=config,
        components=options.parse_components(component), out=out, outputs=outputs, is_reporting_error=report_error,
        job_dir=_job_dir(job, no_job, config),
    ).run(interrupt)  # fmt: skip


def _preset(name: str | None, context: typer.Context) -> Asked:
    """The fields that a preset sets and the user did not."""
    if name is None:
        return {}
    check_choice("--preset", name, PRESETS)
    sources = {field: context.get_parameter_source(field) for field in PRESETS[name]}
    # By its name: typer has a click of its own.
    given = {
        field for field, source in sources.items() if source is not None and source.name == "COMMANDLINE"
    }
    return {field: value for field, value in PRESETS[name].items() if field not in given}


def _job_dir(job: Path | None, no_job: bool, config: EngineConfig) -> Path | None:
    """The folder that was asked for, or a new one in the cache folder."""
    if no_job:
        if job is not None:
            raise ConfigError("--job and --no-job exclude each other")
        return None
    return new_job_path(config.cache_path()) if job is None else job
