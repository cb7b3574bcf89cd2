"""``isoframe demo``: the built-in model on a built-in image."""

from dataclasses import replace
from pathlib import Path

from ...demo import find_example
from ...request.config import EngineConfig, Request
from ...request.fields import JOB, OUTPUT, setting
from .terminal.command import Asked, command
from .terminal.interrupt import Interrupt
from .terminal.options import OutputOptions
from .terminal.video_command import VideoCommand

DEFAULT_OUT = Path("isoframe-demo.mp4")

# Named here because help is printed without reading files; a test compares it with the folder.
EXAMPLE_NAMES = ("bounce", "right", "spin")


@command(asked=("seconds", "order", "seed"), config=("device",))
def demo(
    asked: Asked,
    config: EngineConfig,
    outputs: OutputOptions,
    interrupt: Interrupt,
    example: str | None = setting(
        None, f"Which built-in image: {', '.join(EXAMPLE_NAMES)} (default: the first).", panel=JOB
    ),
    out: Path = setting(
        DEFAULT_OUT,
        f"The MP4 to write; {DEFAULT_OUT} may exist and is replaced.",
        option="--out -o",
        panel=OUTPUT,
    ),
) -> None:
    """Make a video with the model that is built in: no download, no graphics card."""
    image, prompt = find_example(example)
    VideoCommand(
        request=Request(image=str(image), prompt=prompt, **asked), model="demo",
        config=replace(config, local_files_only=True), out=out,
        outputs=replace(outputs, overwrite=outputs.overwrite or out == DEFAULT_OUT),
    ).run(interrupt)  # fmt: skip
