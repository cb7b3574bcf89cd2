"""``isoframe codebook``: fit the centroids of history discretisation."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from ...request.fields import OUTPUT
from .terminal import options
from .terminal.command import command

Files = Annotated[
    list[Path], typer.Argument(metavar="LATENTS...", help="Files that `generate --latents` wrote.")
]
Target = Annotated[
    Path, Option("--out", "-o", help="The codebook to write, .safetensors.", rich_help_panel=OUTPUT)
]
Size = Annotated[int, Option("--centroids", min=1, help="How many; fewer keep less of the history.")]
Seed = Annotated[int, Option("--seed", help="Of the first centroids.")]


@command()
def codebook(
    files: Files,
    out: Target,
    centroids: Size = 128,
    seed: Seed = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Fit K centroids of latent pixels, for generate --history-codebook (experimental)."""
    from ...files import check_latents_path, writing
    from ...sampling.codebook import Codebook, fit_codebook, read_points, save_codebook

    check_latents_path(out, overwrite=overwrite)
    points = read_points(files)
    fitted = fit_codebook(points, centroids, seed=seed)
    with writing(out):
        save_codebook(out, fitted, [path.name for path in files])
    spread = (points - points.mean(dim=0)).square().sum()
    error_share = (Codebook.load(out).nearest(points) - points).square().sum() / spread
    typer.echo(
        f"{out}: {centroids} centroids of {len(points)} latent pixels, {error_share:.1%} of the variance lost"
    )
