"""``isoframe frame``: one picture from an image and a prompt, as if it came later in a video."""

from pathlib import Path
from typing import Annotated

import typer

from ...request.config import EngineConfig, Request
from ...request.fields import JOB, OUTPUT, needed
from .terminal import options
from .terminal.command import Asked, command
from .terminal.printing import echo


@command(
    asked=(
        "image", "prompt", "end_image", "size", "base_resolution", "num_steps", "seed", "guidance_scale", "cfg_scale",
        "negative_prompt", "sampler", "posterior", "force", "loras",
    ),
    config=options.CONFIG,
)  # fmt: skip
def frame(
    asked: Asked,
    config: EngineConfig,
    out: Path = needed("The PNG to write.", option="--out -o", panel=OUTPUT),
    index: Annotated[
        int,
        typer.Option(
            min=1,
            help="Which latent frame after the image: 9 is 1.2 s later at 30 fps. What far ones show depends on the model.",
            rich_help_panel=JOB,
        ),
    ] = 9,
    model: str = options.MODEL,
    overwrite: bool = options.OVERWRITE,
) -> None:
    """Make one picture: the frame that comes so much later in a video of the image."""
    from ...output_paths import check_png_path

    check_png_path(out, overwrite=overwrite)
    request = Request(**asked)
    from ... import Engine

    with Engine.load(model, config=config, size=request.size) as engine:
        engine.render_frame(request, out, target_index=index, overwrite=overwrite)
    echo(str(out))
