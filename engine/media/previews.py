"""Pictures of the latents while a job runs, without the VAE."""

import os
from pathlib import Path

import torch
from torch import Tensor

from ..companions.latent_rgb import latents_to_rgb
from ..events import StepEvent
from ..files import make_folder, replace_when_whole, writing
from ..output_paths import check_folder

_MIN_HEIGHT = 64


def tile_frames(frames: Tensor) -> Tensor:
    """Frames [T, H, W, 3] side by side as one strip [H, T * W, 3], small ones enlarged to at least 64 px."""
    factor = max(-(-_MIN_HEIGHT // frames.shape[1]), 1)
    strip = torch.cat(list(frames), dim=1)
    return strip.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1)


class LatentPreviews:
    """One strip of pictures a section, renewed at every step.

    Args:
        folder: created with the first picture; gets section_000.png and so on, in generation order.
        matrix: latent-to-RGB map [C + 1, 3].
    """

    def __init__(self, folder: str | os.PathLike[str], matrix: Tensor) -> None:
        self.folder = Path(folder)
        self._matrix = matrix
        check_folder("preview", self.folder)

    def write(self, event: StepEvent) -> Path:
        """Draw the step's prediction of the clean latents."""
        from PIL import Image

        make_folder("preview", self.folder)
        path = self.folder / f"section_{event.section:03d}.png"
        # One of many, which nobody would miss.
        with writing(path), replace_when_whole(path, is_synced=False) as temporary:
            Image.fromarray(tile_frames(latents_to_rgb(event.x0, self._matrix)).numpy()).save(
                temporary, "PNG"
            )
        return path
