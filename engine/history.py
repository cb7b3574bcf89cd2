"""The generated latents that later sections attend to: never more than 19 latent frames."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .sections import NUM_CLEAN_1X, NUM_CLEAN_2X, NUM_CLEAN_4X, NUM_HISTORY


@dataclass(frozen=True, slots=True)
class CleanLatents:
    """Noise-free context of one section.

    Attributes:
        clean: start latent and nearest history frame [1, C, 2, Y, X], or None.
        clean_2x: [1, C, 2, Y, X], or None.
        clean_4x: [1, C, 16, Y, X], or None.
    """

    clean: Tensor | None
    clean_2x: Tensor | None
    clean_4x: Tensor | None

    def anchored(self, latent: Tensor) -> "CleanLatents":
        """The same with ``latent`` [1, C, 1, Y, X] in the place of the start latent."""
        assert self.clean is not None, "a section sees its start"
        return replace(self, clean=torch.cat((latent, self.clean[:, :, 1:]), dim=2))


class History:
    """History of one job; slots that no section has filled are zero, and attended to."""

    def __init__(self, start_latent: Tensor, order: str) -> None:
        """Start from ``start_latent`` [1, C, 1, Y, X]; ``order`` is "inverted" or "forward"."""
        self.start_latent = start_latent
        self.order = order
        batch, channels, _, height, width = start_latent.shape
        self.latents = start_latent.new_zeros((batch, channels, NUM_HISTORY, height, width))
        if order == "forward":
            self.append(start_latent)

    def append(self, latents: Tensor) -> None:
        """Add a finished section [1, C, T, Y, X]: in front in inverted order, else at the end."""
        if self.order == "inverted":
            self.latents = torch.cat((latents, self.latents), dim=2)[:, :, :NUM_HISTORY]
        else:
            self.latents = torch.cat((self.latents, latents), dim=2)[:, :, -NUM_HISTORY:]

    def clean_latents(self) -> CleanLatents:
        """Context of the next section. Nearest frames are densest; inside a group time runs forward."""
        if self.order == "inverted":
            near, mid, far = self.latents.split((NUM_CLEAN_1X, NUM_CLEAN_2X, NUM_CLEAN_4X), dim=2)
        else:
            far, mid, near = self.latents.split((NUM_CLEAN_4X, NUM_CLEAN_2X, NUM_CLEAN_1X), dim=2)
        return CleanLatents(torch.cat((self.start_latent, near), dim=2), mid, far)
