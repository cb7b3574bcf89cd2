"""``isoframe demo``: the built-in model on a built-in image."""

from pathlib import Path
from typing import Annotated

from typer import Option

from ...demo import find_example
from ...request.config import EngineConfig, Request
from .terminal import options
from .terminal.failures import readable_errors
from .terminal.options import DEFAULTS, JOB, OUTPUT
from .terminal.video_command import Rendering

DEFAULT_OUT = Path("isoframe-demo.mp4")

# Named here because help is printed without reading files; a test compares it with the folder.
EXAMPLE_NAMES = ("bounce", "right", "spin")

Example = Annotated[
    str | None,
    Option(
        "--example",
        help=f"Which built-in image: {', '.join(EXAMPLE_NAMES)} (default: the first).",
        rich_help_panel=JOB,
    ),
]
DemoOut = Annotated[
    Path,
    Option(
        "--out",
        "-o",
        help=f"The MP4 to write; {DEFAULT_OUT} may exist and is replaced.",
        rich_help_panel=OUTPUT,
    ),
]


def demo(
    example: Example = None,
    seconds: options.Seconds = DEFAULTS.seconds,
    order: options.Order = DEFAULTS.order,
    seed: options.Seed = DEFAULTS.seed,
    out: DemoOut = DEFAULT_OUT,
    overwrite: options.Overwrite = False,
    json_progress: options.JsonProgress = False,
    quiet: options.Quiet = False,
    device: options.Device = "auto",
    debug: options.Debug = False,
) -> None:
    """Make a video with the model that is built in: no download, no graphics card."""
    with readable_errors(debug=debug, is_json=json_progress):
        image, prompt = find_example(example)
        Rendering(
            request=Request(image=str(image), prompt=prompt, seconds=seconds, order=order, seed=seed),
            model="demo",
            config=EngineConfig(device=device, local_files_only=True),
            out=out,
            is_overwriting=overwrite or out == DEFAULT_OUT,
            is_json=json_progress,
            is_quiet=quiet,
        ).run()
