"""``isoframe frame``: one picture from an image and a prompt, as if it came later in a video."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from ...request.config import EngineConfig, Request
from .terminal import options
from .terminal.failures import readable_errors
from .terminal.options import DEFAULTS

Target = Annotated[Path, Option("--out", "-o", help="The PNG to write.", rich_help_panel=options.OUTPUT)]
Index = Annotated[
    int,
    Option(
        "--index",
        min=1,
        help="Which latent frame after the image: 9 is 1.2 s later at 30 fps. What far ones show depends on the model.",
        rich_help_panel=options.JOB,
    ),
]


def frame(
    prompt: options.Prompt,
    out: Target,
    image: options.ImagePath = None,
    index: Index = 9,
    end_image: options.EndImage = None,
    model: options.Model = "demo",
    size: options.Size = None,
    base_resolution: options.BaseResolution = None,
    steps: options.Steps = DEFAULTS.num_steps,
    seed: options.Seed = DEFAULTS.seed,
    guidance: options.Guidance = DEFAULTS.guidance_scale,
    lora: options.Loras = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    precision: options.Precision = None,
    vram: options.Vram = None,
    ram: options.Ram = None,
    cache_dir: options.CacheDir = None,
    local_files_only: options.LocalFilesOnly = False,
    debug: options.Debug = False,
) -> None:
    """Make one picture: the frame that comes so much later in a video of the image."""
    with readable_errors(debug=debug):
        from ...files import check_png_path

        check_png_path(out, overwrite=overwrite)
        request = Request(
            image=image, prompt=prompt, end_image=end_image, size=options.parse_size(size), num_steps=steps,
            base_resolution=base_resolution, seed=seed, guidance_scale=guidance, loras=options.parse_loras(lora),
        )  # fmt: skip
        config = EngineConfig(
            device=device, precision=precision, vram=vram, ram=ram, cache_dir=cache_dir,
            local_files_only=local_files_only,
        )  # fmt: skip
        from ... import Engine

        with Engine.load(model, config=config, size=request.size) as engine:
            engine.render_frame(request, out, target_index=index, overwrite=overwrite)
        typer.echo(str(out))
