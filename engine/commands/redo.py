"""``isoframe redo``: make the end of a job again, with another seed or prompt."""

from typing import Annotated

from typer import Option

from . import options
from .failures import readable_errors
from .resume import Job, JobOut, resume

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
    from ..config import EngineConfig
    from ..job_list import find_job
    from ..outputs import check_video_path

    with readable_errors(debug=debug, is_json=json_progress):
        folder = find_job(job, EngineConfig(cache_dir=cache_dir).cache_path())
        # Nothing is given up for a video that then cannot be written.
        check_video_path(folder.record.output if out is None else out, overwrite=overwrite)
        folder.redo(section - 1, seed=seed, prompt=prompt)
    resume(job, out, overwrite, preview, frame_filter, json_progress, quiet, cache_dir, debug)
