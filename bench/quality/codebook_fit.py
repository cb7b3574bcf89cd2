"""``isoframe codebook``: fit the centroids that history discretisation moves latent pixels to."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...engine.device import machine_errors
from ...engine.errors import InputError
from ...engine.files import make_folder, output_when_whole, writing
from ...engine.sampling.codebook import assign

_MAX_POINTS = 200_000


def fit_codebook(points: Tensor, num_centroids: int, *, seed: int = 0, num_rounds: int = 20) -> Tensor:
    """K-means: far points first (k-means++), then Lloyd's rounds.

    Args:
        points: [N, C] fp32, N at least ``num_centroids``; more than 200 000 are sampled.
        num_centroids: K.
        seed: of the first centroids, which are points.
        num_rounds: of assigning and averaging.

    Returns:
        [K, C] fp32. A centroid that loses all of its points moves to a random one.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    points = points.float()
    if len(points) > _MAX_POINTS:
        points = points[torch.randperm(len(points), generator=generator)[:_MAX_POINTS]]
    if not 1 <= num_centroids <= len(points):
        raise InputError(
            f"a codebook needs from 1 to {len(points)} centroids for so many points, got {num_centroids}"
        )
    centroids = _first_centroids(points, num_centroids, generator)
    for _ in range(num_rounds):
        owners = assign(points, centroids)
        counts = torch.bincount(owners, minlength=num_centroids)
        sums = torch.zeros_like(centroids).index_add_(0, owners, points)
        replaced = points[torch.randint(len(points), (num_centroids,), generator=generator)]
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], replaced)
    return centroids


def _first_centroids(points: Tensor, num_centroids: int, generator: torch.Generator) -> Tensor:
    """Points, each drawn by its squared distance from those before it (Arthur and Vassilvitskii 2007)."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distances = (points - points[chosen[0]]).square().sum(dim=1)
    while len(chosen) < num_centroids:
        # Where all points are chosen, any will do.
        weights = distances if distances.sum() > 0 else torch.ones_like(distances)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        distances = torch.minimum(distances, (points - points[chosen[-1]]).square().sum(dim=1))
    return points[chosen].clone()


def read_points(paths: Sequence[str | os.PathLike[str]]) -> Tensor:
    """Latent pixels [N, C] of files that ``--latents`` wrote.

    Raises:
        InputError: a file holds no latents, or they have different channels.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    parts = []
    for path in paths:
        try:
            latents = load_file(path)["latents"]
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(
                f"{path} holds no latents of isoframe ({error}); write some with --latents"
            ) from error
        parts.append(latents.float().movedim(1, -1).flatten(0, -2))
    if len({part.shape[1] for part in parts}) != 1:
        raise InputError("the latents of a codebook must have the same channels")
    return torch.cat(parts)


def save_codebook(path: Path, centroids: Tensor, sources: Sequence[str], *, overwrite: bool = True) -> None:
    """Write centroids [K, C] and the names of what they were fitted on."""
    from safetensors.torch import save

    make_folder("codebook", path.parent)
    metadata = {"isoframe": json.dumps({"kind": "codebook", "sources": list(sources)})}
    with machine_errors("the codebook"), writing(path):
        content = save({"centroids": centroids.contiguous()}, metadata=metadata)
        with output_when_whole(path, overwrite=overwrite) as temporary:
            temporary.write_bytes(content)
