"""Frames as a numbered PNG sequence."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files import make_folder, output_when_whole, writing
from ..output_paths import check_png_folder
from .segments import check_frames


class PngWriter:
    """Writes every frame to ``frame_00000.png`` and so on, in video order; sections come in any order.

    Args:
        folder: created with the first frame.
        num_frames: frames of the whole video.
        metadata: of the video; every frame carries it as ``comment``, with its own number.
        overwrite: replace the sequence that is in the folder; it goes when the first frame comes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        num_frames: int,
        metadata: Mapping[str, object] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.num_frames = num_frames
        self._num_digits = max(len(str(num_frames - 1)), 5)
        self._metadata = dict(metadata or {})
        self._is_overwriting = overwrite
        self._old_frames = check_png_folder(self.folder, overwrite=overwrite)

    def write(self, frames: Tensor | NDArray[np.uint8], first_frame: int) -> None:
        """Save frames, uint8 [T, H, W, 3]; the first of them is frame ``first_frame`` of the video."""
        pixels = check_frames(frames, first_frame, self.num_frames)
        if len(pixels):
            self._make_room()
        for index, frame in enumerate(pixels, start=first_frame):
            comment = json.dumps({**self._metadata, "frame": index})
            path = self.folder / f"frame_{index:0{self._num_digits}d}.png"
            save_png(torch.from_numpy(frame), path, comment, overwrite=self._is_overwriting)

    def _make_room(self) -> None:
        make_folder("PNG", self.folder)
        while self._old_frames:
            self._old_frames.pop().unlink(missing_ok=True)


def save_png(pixels: Tensor, path: Path, comment: str | None = None, *, overwrite: bool = True) -> None:
    """Write uint8 [H, W, 3] as a PNG that appears complete, with a ``comment`` as text inside."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    if comment is not None:
        texts.add_text("comment", comment, zip=True)
    # Not synced: a sequence has hundreds of pictures, and a preview is renewed at every step.
    with (
        writing(path),
        output_when_whole(path, overwrite=overwrite, is_synced=False) as temporary,
    ):
        Image.fromarray(pixels.numpy()).save(temporary, format="PNG", pnginfo=texts)
