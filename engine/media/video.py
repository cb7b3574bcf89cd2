"""The video file: sections go in once, in any order; a file or a playable part of it comes out."""

import json
import logging
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..files import DISK_FULL, KeptOutputError, folder_error, make_folder, parse_json, writing
from ..output_paths import check_video_path, free_partial_path
from .codecs import VideoFormat, open_video
from .mp4 import index_bytes, write_mp4
from .segments import KeptSegments, Segment, SegmentSpool, check_frames, longest_run

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """A video on disk.

    Attributes:
        path: the MP4, or the folder of a PNG sequence.
        num_frames: frames in it.
        fps: frames per second.
        width: pixels.
        height: pixels.
        seconds: num_frames / fps.
        metadata: what the writer was given: request, seed, model hash, versions; empty for a foreign file.
    """

    path: Path
    num_frames: int
    fps: float
    width: int
    height: int
    seconds: float
    metadata: dict[str, object] = field(default_factory=dict)


class VideoWriter:
    """Writes an MP4 section by section.

    Each :meth:`write` encodes its frames once, as a closed-GOP segment, into a nameless file beside the
    output. :meth:`finish` and :meth:`write_partial` copy the packets into an MP4 in video order. The writer keeps
    no frames. Use it as a context manager: leaving it, by an error or Ctrl-C too, frees the segments.

    Args:
        path: the MP4 to make; its folder is created.
        video_format: size, pace, codec and quality.
        num_frames: frames of the whole video.
        metadata: anything JSON can hold; stored as the file's ``comment``.
        overwrite: replace an existing file.
        kept: segments of a job that was stopped, and the spool that takes the others.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        video_format: VideoFormat,
        *,
        num_frames: int,
        metadata: Mapping[str, object] | None = None,
        overwrite: bool = False,
        kept: KeptSegments | None = None,
    ) -> None:
        self.path = Path(path)
        self.num_frames = num_frames
        self._format = video_format
        self._size = video_format.height, video_format.width
        self._metadata = dict(metadata or {})
        self._segments: list[Segment] = [] if kept is None else list(kept.segments)
        self._token = None if kept is None else kept.token
        self._num_joined_bytes = 0
        self._partial_path: Path | None = None
        self._is_overwriting = overwrite
        self.is_finished = False
        check_video_path(self.path, overwrite=overwrite)
        make_folder("output", self.path.parent)
        self._spool = self._make_spool() if kept is None else kept.spool

    @property
    def metadata(self) -> dict[str, object]:
        """What the file says of its making."""
        return dict(self._metadata)

    @property
    def num_final_frames(self) -> int:
        """Frames written so far."""
        return sum(segment.num_frames for segment in self._segments)

    @property
    def num_bytes_written(self) -> int:
        """Bytes that went to disk: segments, partial files and the video."""
        return self._spool.num_bytes_written + self._num_joined_bytes

    def write(self, frames: Tensor | NDArray[np.uint8], first_frame: int) -> Segment | None:
        """Encode final frames, uint8 [T, H, W, 3]; the first of them is frame ``first_frame`` of the video.

        Sections come in any order; each frame comes once. No frames (T = 0) is allowed, and makes no segment.
        """
        pixels = check_frames(frames, first_frame, self.num_frames, self._size)
        for segment in self._segments:
            if first_frame < segment.end_frame and segment.first_frame < first_frame + len(pixels):
                raise ValueError(
                    f"frames {segment.first_frame} to {segment.end_frame - 1} are written already"
                )
        if len(pixels) == 0:
            return None
        with writing(self.path):
            self._segments.append(self._spool.append(self._format, pixels, first_frame))
        return self._segments[-1]

    def write_partial(
        self,
        path: str | os.PathLike[str] | None = None,
        preview: tuple[Tensor | NDArray[np.uint8], int] | None = None,
    ) -> Video:
        """Write a playable MP4 of what is there now: the longest run of frames without a gap.

        Args:
            path: file to write or replace; None is ``<name>.partial.mp4`` beside the output, or
                ``<name>.partial-2.mp4`` and so on where an earlier job left one; :meth:`finish` removes it.
            preview: provisional frames, uint8 [T, H, W, 3], and the place of the first one; not kept.

        Returns:
            The file; its metadata says under "partial" which frames it holds.
        """
        target = Path(path) if path is not None else self._partial_path or free_partial_path(self.path)
        segments = list(self._segments)
        if preview is not None and len(preview[0]):
            pixels = check_frames(*preview, self.num_frames, self._size)
            segments.append(SegmentSpool.in_memory().append(self._format, pixels, preview[1]))
        if not segments:
            raise InputError(f"{target} cannot be written: no frame of the video is finished yet")
        run = longest_run(segments)
        part = {"first_frame": run[0].first_frame, "num_frames": sum(segment.num_frames for segment in run)}
        is_own = path is not None or self._partial_path is not None
        video = self._join(target, run, {**self._metadata, "partial": part}, overwrite=is_own)
        if path is None:
            self._partial_path = target
        return video

    def finish(self) -> Video:
        """Join the segments into the video; the path holds the whole file or what it held before."""
        if self.num_final_frames != self.num_frames:
            raise ValueError(f"the video needs {self.num_frames} frames, {self.num_final_frames} are written")
        segments = sorted(self._segments, key=lambda segment: segment.first_frame)
        video = self._join(self.path, segments, self._metadata, overwrite=self._is_overwriting)
        self.is_finished = True
        if self._partial_path is not None:
            self._partial_path.unlink(missing_ok=True)
        self.close()
        return video

    def close(self) -> None:
        """Free the segments. The partial file, if any, stays."""
        self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_spool(self) -> SegmentSpool:
        reserved_bytes = index_bytes(self.num_frames, self.num_frames, 0, json.dumps(self._metadata))
        try:
            return SegmentSpool.in_folder(self.path.parent, reserved_bytes=reserved_bytes)
        except OSError as error:
            raise folder_error("output", self.path.parent, error) from error

    def _join(
        self, path: Path, segments: Sequence[Segment], metadata: dict[str, object], *, overwrite: bool
    ) -> Video:
        try:
            make_folder("output", path.parent)
            with writing(path):
                self._num_joined_bytes += self._write_with_room(path, segments, metadata, overwrite)
        except InputError as error:
            if not self._spool.is_kept and not isinstance(error, KeptOutputError):
                raise self._rescue(error, segments, metadata) from error
            raise
        num_frames = sum(segment.num_frames for segment in segments)
        return Video(
            path=path,
            num_frames=num_frames,
            fps=self._format.fps,
            width=self._format.width,
            height=self._format.height,
            seconds=num_frames / self._format.fps,
            metadata=metadata,
        )

    def _rescue(
        self, error: InputError, segments: Sequence[Segment], metadata: Mapping[str, object]
    ) -> InputError:
        """Keep frames that nothing else keeps in the folder for temporary files; what to raise in the place of ``error``."""
        kept = Path(tempfile.gettempdir()) / f"isoframe-{secrets.token_hex(4)}.mp4"
        try:
            write_mp4(kept, self._format, segments, metadata)
        except (InputError, OSError) as failure:
            error.add_note(f"the frames could not be kept as {kept} either: {failure}")
            return error
        return KeptOutputError(str(error), kept)

    def _write_with_room(
        self, path: Path, segments: Sequence[Segment], metadata: Mapping[str, object], overwrite: bool
    ) -> int:
        try:
            return write_mp4(path, self._format, segments, metadata, self._token, overwrite=overwrite)
        except OSError as error:
            if error.errno not in DISK_FULL or not self._spool.is_on_disk or self._spool.is_kept:
                raise
            # The segments are small in RAM, and their room on the disk is what the file lacks.
            _logger.info("no room for %s beside its segments; moving the segments to memory", path)
            self._spool.move_to_memory()
            return write_mp4(path, self._format, segments, metadata, self._token, overwrite=overwrite)


def read_video_info(path: str | os.PathLike[str]) -> Video:
    """Size, length and metadata of a video file, or of one frame as PNG; nothing is decoded.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"video must be a file, {path} is {'a folder' if path.is_dir() else 'missing'}")
    if path.suffix.lower() == ".png":
        return _read_png_info(path)
    import av

    try:
        with open_video(path) as container:
            if not container.streams.video:
                raise InputError(f"video must hold a video stream, {path} has none")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise InputError(f"video must be in a codec that FFmpeg knows, {path} is not")
            num_frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
            fps = float(stream.average_rate or 0)
            return Video(
                path=path,
                num_frames=num_frames,
                fps=fps,
                width=stream.width,
                height=stream.height,
                seconds=num_frames / fps if fps else 0.0,
                metadata=_parse_comment(container.metadata.get("comment", "")),
            )
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"video must be readable, {path} is not: {error}") from error


def _read_png_info(path: Path) -> Video:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            comment = str(image.info.get("comment", ""))
            return Video(
                path=path,
                num_frames=1,
                fps=0.0,
                width=image.width,
                height=image.height,
                seconds=0.0,
                metadata=_parse_comment(comment),
            )
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} must be a PNG, it cannot be read: {error}") from error


def _parse_comment(comment: str) -> dict[str, object]:
    try:
        metadata = parse_json(comment)
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}
