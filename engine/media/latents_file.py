"""The latents of a whole video as one safetensors file, written section by section."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Self

import torch
from torch import Tensor

from ..errors import InputError
from ..files import WholeFile, make_folder, place_output, writing
from ..output_paths import check_latents_path
from .segments import allocate


class LatentsWriter:
    """Writes ``latents`` [1, C, T, h, w] fp32, scaled as the transformer sees them, in video order, start latent first.

    Sections come in any order; the writer keeps none. The file appears when all are there. Use it as a context manager:
    leaving it early, by an error or Ctrl-C too, leaves no file.

    Args:
        path: the file; ends in .safetensors.
        num_frames: latent frames of the video.
        metadata: of the video; kept as ``comment``.
        overwrite: replace an existing file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        num_frames: int,
        metadata: Mapping[str, object],
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        check_latents_path(self.path, overwrite=overwrite)
        make_folder("latents", self.path.parent)
        self._num_frames = num_frames
        self._metadata = dict(metadata)
        self._is_overwriting = overwrite
        self._whole: WholeFile | None = None
        self._file: BinaryIO | None = None
        self._data_start = 0
        self._missing = set(range(num_frames))

    def write(self, latents: Tensor, first_frame: int) -> None:
        """Write latents [1, C, T, h, w]; the first of them is latent frame ``first_frame`` of the video."""
        frames = range(first_frame, first_frame + latents.shape[2])
        if not self._missing.issuperset(frames):
            raise ValueError(f"latent frames {frames.start} to {frames.stop - 1} are written or outside")
        with writing(self.path):
            if self._file is None:
                self._file = self._create(latents)
            plane = latents[0, 0, 0].numel() * 4
            for channel, values in enumerate(latents[0].detach().float().cpu().contiguous()):
                self._file.seek(self._data_start + (channel * self._num_frames + frames.start) * plane)
                self._file.write(values.view(-1).view(torch.uint8).numpy().tobytes())
        self._missing -= set(frames)

    def finish(self) -> Path:
        """Put the file in its place."""
        if self._missing or self._file is None or self._whole is None:
            raise ValueError(f"{len(self._missing)} of {self._num_frames} latent frames are not written")
        with writing(self.path):
            self._file.close()
            self._whole.sync()
            whole, self._whole = self._whole, None
            place_output(whole, overwrite=self._is_overwriting)
        return self.path

    def close(self) -> None:
        """Remove what is unfinished."""
        if self._file is not None:
            self._file.close()
        if self._whole is not None:
            self._whole.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create(self, latents: Tensor) -> BinaryIO:
        """The file with its header; its size is taken at once, so that a full disk shows early."""
        shape = [1, latents.shape[1], self._num_frames, *latents.shape[3:]]
        num_bytes = 4 * math.prod(shape)
        header = json.dumps(
            {
                "__metadata__": {"comment": json.dumps(self._metadata, default=str)},
                "latents": {"dtype": "F32", "shape": shape, "data_offsets": [0, num_bytes]},
            }
        ).encode()
        header += b" " * (-len(header) % 8)
        self._whole = WholeFile(self.path)
        file = self._whole.create().open("w+b")
        file.write(len(header).to_bytes(8, "little") + header)
        self._data_start = file.tell()
        allocate(file, self._data_start + num_bytes)
        file.truncate(self._data_start + num_bytes)
        return file


def check_resumable(num_encoded: int, num_sections: int) -> None:
    """Raise :class:`InputError` where nothing is left of a job that would make its start latent again."""
    if num_encoded == num_sections:
        raise InputError(
            "latents cannot be written of a job that is complete; its sections are section_*.safetensors in its "
            "folder, and another job folder writes them all"
        )
