"""History discretisation: every latent pixel of the history becomes the nearest of K centroids.

The paper trains with it, so that small errors of earlier sections leave no trace in what later ones see. No published
checkpoint was: the option is experimental.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ..errors import InputError

# Latent pixels whose distances to all centroids are in memory at a time.
_CHUNK = 4096
_MAX_POINTS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Codebook:
    """Centroids of latent pixels.

    Attributes:
        centroids: [K, C] fp32.
        content_hash: SHA-256 of the file.
    """

    centroids: Tensor
    content_hash: str

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :func:`save_codebook` wrote.

        Raises:
            InputError: the file is missing or no codebook.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            content = Path(path).read_bytes()
            centroids = load(content)["centroids"].float()
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(
                f"history_codebook {path} is no codebook: {error}; fit one with isoframe codebook"
            ) from error
        if centroids.ndim != 2 or not centroids.isfinite().all():
            raise InputError(f"history_codebook {path} must hold finite centroids [K, C]")
        return cls(centroids=centroids, content_hash=hashlib.sha256(content).hexdigest())

    def nearest(self, points: Tensor) -> Tensor:
        """The centroid of every point [N, C]."""
        return torch.cat([self.centroids[_assign(part, self.centroids)] for part in _chunks(points)])

    def snap(self, latents: Tensor) -> Tensor:
        """Latents [1, C, T, Y, X] with every pixel at its centroid; empty frames stay as they are.

        Raises:
            InputError: the latents have another number of channels.
        """
        if latents.shape[1] != self.centroids.shape[1]:
            raise InputError(
                f"history_codebook must have {latents.shape[1]} channels, got {self.centroids.shape[1]}"
            )
        points = latents.movedim(1, -1)
        found = self.nearest(points.reshape(-1, points.shape[-1]))
        is_there = latents.flatten(3).abs().amax(dim=(1, 3)) > 0
        return torch.where(is_there[:, None, :, None, None], found.view(points.shape).movedim(-1, 1), latents)


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
        owners = torch.cat([_assign(part, centroids) for part in _chunks(points)])
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


def save_codebook(path: Path, centroids: Tensor, sources: Sequence[str]) -> None:
    """Write centroids [K, C] and the names of what they were fitted on."""
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"isoframe": json.dumps({"kind": "codebook", "sources": list(sources)})}
    path.write_bytes(save({"centroids": centroids.contiguous()}, metadata=metadata))


def _chunks(points: Tensor) -> list[Tensor]:
    return [points[start : start + _CHUNK] for start in range(0, len(points), _CHUNK)]


def _assign(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid of every point [N, C]."""
    # By products, as torch does it for many points, near centroids change places.
    distances = torch.cdist(points, centroids, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.argmin(dim=1)
