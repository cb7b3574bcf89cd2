"""A video that is to be extended: its frames at the size of the result, and its end next to what is generated."""

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import ConfigError, InputError
from ..request.sections import NUM_HISTORY
from .codecs import open_video
from .images import fit_to_bucket
from .video import read_video_info

# Frames that are handed to the encoder at a time.
_CHUNK = 64
# A rate such as 30000 / 1001 counts as 30.
_MAX_RATE_DIFFERENCE = 0.1


class SourceVideo:
    """Frames of a file, which stay as they are in the result; another shape is scaled and cropped.

    Attributes:
        path: the file.
        num_frames: all of them.
        given_size: (height, width) in pixels.
    """

    def __init__(self, path: str | os.PathLike[str], fps: int) -> None:
        """Open ``path``, whose frames per second must be ``fps``.

        Raises:
            InputError: it cannot be read or has fewer than 5 frames.
            ConfigError: it has another rate.
        """
        info = read_video_info(path)
        self.path = Path(path)
        self.num_frames = info.num_frames
        self.given_size = info.height, info.width
        if self.num_frames < 5:
            raise InputError(f"a video to extend must have at least 5 frames, {path} has {self.num_frames}")
        if abs(info.fps - fps) > _MAX_RATE_DIFFERENCE:
            raise ConfigError(
                f"fps must be that of {path}, {info.fps:g}, got {fps}; pass fps={round(info.fps)}"
            )

    def content_hash(self) -> str:
        """SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def chunks(self, size: tuple[int, int]) -> Iterator[Tensor]:
        """All frames at ``size`` (height, width), uint8 [T, H, W, 3] a few at a time.

        Raises:
            InputError: there are not as many as the file says.
        """
        frames, num_frames = (_fit(frame, size) for frame in decode_frames(self.path)), 0
        while chunk := list(itertools.islice(frames, _CHUNK)):
            num_frames += len(chunk)
            yield torch.from_numpy(np.stack(chunk))
        if num_frames != self.num_frames:
            raise InputError(
                f"{self.path} says that it has {self.num_frames} frames, {num_frames} can be read"
            )

    def clip(self, size: tuple[int, int], *, is_tail: bool) -> tuple[Tensor, int]:
        """The frames that the history is made of, and how many latents at its start only lead in.

        A latent stands for 4 frames, but the first one of a clip for one. So a clip has one frame more than the 4 k of
        its latents where there is one: before its tail, and the first frame once more before its head.

        Args:
            size: (height, width) in pixels.
            is_tail: the end of the video, else its start.

        Returns:
            Pixels fp32 [1, 3, 4k + 1, H, W] in [-1, 1], and 1 or 0.
        """
        wanted = 4 * NUM_HISTORY
        decoded = decode_frames(self.path)
        if is_tail:
            # Each at the size of the result as it comes: those of the file may be many times as large.
            first = max(self.num_frames - wanted - 1, 0)
            frames = list(
                deque(
                    (_fit(frame, size) for frame in itertools.islice(decoded, first, None)), maxlen=wanted + 1
                )
            )
            if len(frames) != self.num_frames - first:
                raise InputError(f"{self.path} says that it has {self.num_frames} frames, others can be read")
            frames = frames[-(4 * ((len(frames) - 1) // 4) + 1) :]
            is_lead_in = len(frames) == wanted + 1
        else:
            frames = [_fit(frame, size) for frame in itertools.islice(decoded, wanted)]
            if not frames:
                raise InputError(f"{self.path} must have frames that can be decoded, it has none")
            frames = [frames[0], *frames[: 4 * (len(frames) // 4)]]
            is_lead_in = True
        pixels = torch.empty(1, 3, len(frames), *size)
        for place, frame in enumerate(frames):
            pixels[0, :, place] = torch.tensor(frame).permute(2, 0, 1).float() / 127.5 - 1
        return pixels, int(is_lead_in)


def first_frame(path: Path) -> Image.Image:
    """The first frame of a video of any length, at its own size.

    Raises:
        InputError: it cannot be read.
    """
    frame = next(decode_frames(path), None)
    if frame is None:
        raise InputError(f"{path} must have a frame that can be decoded, it has none")
    return Image.fromarray(frame)


def decode_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Frames of a video, RGB [H, W, 3], in its order.

    Raises:
        InputError: it cannot be read.
    """
    import av

    try:
        with open_video(path) as container:
            if not container.streams.video:
                raise InputError(f"{path} must hold a video stream, it has none")
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path} cannot be decoded: {error}") from error


def _fit(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if frame.shape[:2] == size:
        return frame
    return np.asarray(fit_to_bucket(Image.fromarray(frame), size))
