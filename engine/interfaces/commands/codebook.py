"""``isoframe codebook``: fit the centroids of history discretisation."""

from pathlib import Path
from typing import Annotated

import typer

from ...request.fields import OUTPUT, needed, setting
from .terminal import options
from .terminal.command import command


@command()
def codebook(
    files: list[Path] = needed(
        "Files that `generate --latents` wrote.", option="LATENTS", metavar="LATENTS..."
    ),
    out: Path = needed("The codebook to write, .safetensors.", option="--out -o", panel=OUTPUT),
    centroids: Annotated[int, typer.Option(min=1, help="How many; fewer keep less of the history.")] = 128,
    seed: int = setting(0, "Of the first centroids.", panel=None),
    overwrite: bool = options.OVERWRITE,
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
