"""History discretisation: every latent pixel of the history becomes the nearest of K centroids.

The paper trains with it, so that small errors of earlier sections leave no trace in what later ones see. No published
checkpoint was: the option is experimental.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ..errors import InputError

# Latent pixels whose distances to all centroids are in memory at a time.
_CHUNK = 4096


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
        """Read what ``isoframe codebook`` wrote.

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
        return self.centroids[assign(points, self.centroids)]

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


def assign(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid of every point [N, C], N at least 1."""
    # By products, as torch does it for many points, near centroids change places.
    found = [
        torch.cdist(part, centroids, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
        for part in points.split(_CHUNK)
    ]
    return torch.cat(found)
