"""Closed-GOP segments: encoded once, kept in one spool file, read back for every join."""

import errno
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .codecs import VideoFormat, encoder_errors

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_START_CODE = b"\0\0\1"
# Supplemental information of the kind "unregistered user data".
_SETTINGS_NAL = bytes((6, 5))


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedFrame:
    """One packet of a segment.

    Attributes:
        size: bytes.
        position: frame in the segment, in display order.
        is_key: whether decoding can start here.
    """

    size: int
    position: int
    is_key: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Frames [first_frame, first_frame + num_frames) of the video, encoded on their own.

    Attributes:
        spool: where the bytes are.
        offset: of the first packet in the spool.
        coded_frames: in decoding order.
    """

    first_frame: int
    num_frames: int
    offset: int
    coded_frames: tuple[CodedFrame, ...]
    spool: "SegmentSpool"

    @property
    def end_frame(self) -> int:
        return self.first_frame + self.num_frames

    @property
    def num_bytes(self) -> int:
        return sum(coded.size for coded in self.coded_frames)

    def packets(self) -> Iterator[tuple[bytes, CodedFrame]]:
        """Annex B packets in decoding order."""
        offset = self.offset
        for coded in self.coded_frames:
            yield self.spool.read(offset, coded.size), coded
            offset += coded.size


class SegmentSpool:
    """Append-only store of encoded segments.

    The file has no name (where the platform allows it), so nothing can be left behind, whatever ends the process;
    :meth:`kept` is the exception.

    Attributes:
        size: bytes of the finished segments.
        num_bytes_written: bytes that went to the disk, those of failed appends not included.
        extradata: SPS and PPS that all segments share; empty before the first one.
        is_kept: whether the file stays when the spool is closed.
    """

    def __init__(self, file: BinaryIO, *, reserved_bytes: int = 0) -> None:
        self.size = 0
        self.num_bytes_written = 0
        self.extradata = b""
        self.is_kept = False
        self._file = file
        self._reserved_bytes = reserved_bytes

    @classmethod
    def in_folder(cls, folder: Path, *, reserved_bytes: int) -> "SegmentSpool":
        """A spool on the file system of ``folder`` that keeps ``reserved_bytes`` of it free for the join."""
        # Unbuffered: after a failed write, a buffer would try again at the next seek.
        file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115  # lives as long as the spool
        return cls(cast(BinaryIO, file), reserved_bytes=reserved_bytes)

    @classmethod
    def kept(cls, path: Path) -> "SegmentSpool":
        """The spool at ``path``, created if it is missing, which outlives the process; it starts with what is there."""
        spool = cls(cast(BinaryIO, path.open("r+b" if path.exists() else "x+b", buffering=0)))
        spool.size, spool.is_kept = path.stat().st_size, True
        return spool

    @classmethod
    def in_memory(cls) -> "SegmentSpool":
        """A spool that touches no disk."""
        return cls(io.BytesIO())

    @classmethod
    def reading(cls, path: Path) -> "SegmentSpool":
        """The spool at ``path``, to read from while another process or thread appends."""
        return cls(cast(BinaryIO, path.open("rb")))

    @property
    def is_on_disk(self) -> bool:
        return not isinstance(self._file, io.BytesIO)

    def append(self, video_format: VideoFormat, frames: NDArray[np.uint8], first_frame: int) -> Segment:
        """Encode ``frames`` [T, H, W, 3] as one segment; after a failure the spool is as it was before."""
        packets = self._encode(video_format, frames)
        offset = self.size
        self._write(b"".join(data for data, _ in packets))
        return Segment(
            first_frame=first_frame,
            num_frames=len(frames),
            offset=offset,
            coded_frames=tuple(coded for _, coded in packets),
            spool=self,
        )

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size)."""
        self._file.seek(offset)
        return self._file.read(size)

    def cut(self, size: int) -> None:
        """Give up what lies beyond the first ``size`` bytes."""
        self._file.truncate(size)
        self.size = size

    def sync(self) -> None:
        """Have the segments reach the disk."""
        os.fsync(self._file.fileno())

    def move_to_memory(self) -> None:
        """Give the disk space back and keep the segments in RAM."""
        file = io.BytesIO(self.read(0, self.size))
        self.close()
        self._file = file

    def close(self) -> None:
        """Delete the file unless it is kept; closing twice is allowed."""
        self._file.close()

    def _encode(self, video_format: VideoFormat, frames: NDArray[np.uint8]) -> list[tuple[bytes, CodedFrame]]:
        encoder = video_format.open_encoder()
        extradata = bytes(encoder.extradata or b"")
        if self.extradata and extradata != self.extradata:
            raise RuntimeError("the encoder changed its parameter sets between two segments of one video")
        with encoder_errors(video_format.encoder):
            packets = [_coded(packet, video_format) for packet in _encode_frames(encoder, frames)]
        if len(packets) != len(frames) or not packets[0][1].is_key:
            raise RuntimeError(f"the encoder returned {len(packets)} packets for {len(frames)} frames")
        self.extradata = extradata
        return packets

    def _write(self, data: bytes) -> None:
        try:
            if self.is_on_disk:
                allocate(self._file, self.size + len(data) + self._reserved_bytes)
            self._file.seek(self.size)
            _write_all(self._file, data)
        except BaseException:
            self._file.truncate(self.size)
            raise
        self.size += len(data)
        self.num_bytes_written += len(data) if self.is_on_disk else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSegments:
    """The segments of a job that outlives its process.

    Attributes:
        spool: where new ones go.
        segments: those that are there.
        token: of the job, for its temporary files.
    """

    spool: SegmentSpool
    segments: tuple[Segment, ...]
    token: str


def check_frames(
    frames: Tensor | NDArray[np.uint8],
    first_frame: int,
    num_frames: int,
    size: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """``frames`` as an array; raise ValueError unless they are uint8 [T, H, W, 3] of ``size`` in a video of ``num_frames``."""
    pixels = np.asarray(frames)
    height, width = size or ("H", "W")
    is_image = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[3] == 3
    if not is_image or (size is not None and pixels.shape[1:3] != size):
        raise ValueError(f"frames must be uint8 [T, {height}, {width}, 3], got {frames.dtype} {pixels.shape}")
    if first_frame < 0 or first_frame + len(pixels) > num_frames:
        raise ValueError(
            f"frames must lie in 0 to {num_frames - 1}, got {first_frame} to {first_frame + len(pixels) - 1}"
        )
    return pixels


def longest_run(segments: Sequence[Segment]) -> list[Segment]:
    """The segments of the longest stretch of the video without a gap, in video order."""
    runs: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda segment: segment.first_frame):
        if runs and runs[-1][-1].end_frame == segment.first_frame:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return max(runs, key=lambda run: run[-1].end_frame - run[0].first_frame)


def _encode_frames(
    encoder: "VideoCodecContext", frames: NDArray[np.uint8]
) -> Iterator["Packet[VideoStream]"]:
    from av import VideoFrame
    from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

    reformatter = VideoReformatter()
    for position, pixels in enumerate(frames):
        frame = reformatter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"),
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.AREA,
        )
        frame.pts, frame.time_base = position, encoder.time_base
        yield from encoder.encode(frame)
    yield from encoder.encode(None)


def _coded(packet: "Packet[VideoStream]", video_format: VideoFormat) -> tuple[bytes, CodedFrame]:
    data = bytes(packet)
    if video_format.codec == "h264":
        data = _strip_settings(data)
    assert packet.pts is not None
    return data, CodedFrame(size=len(data), position=packet.pts, is_key=packet.is_keyframe)


def _strip_settings(data: bytes) -> bytes:
    """The packet without the text of encoder settings that x264 puts before each first frame (about 700 bytes)."""
    start = data.index(_START_CODE) + len(_START_CODE)
    is_text = data[start : start + 2] == _SETTINGS_NAL
    return data[data.index(_START_CODE, start) :] if is_text else data


def allocate(file: BinaryIO, num_bytes: int) -> None:
    """Have the file system promise ``num_bytes``, where it can: a full disk is then noticed before any write."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _write_all(file: BinaryIO, data: bytes) -> None:
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[file.write(remaining) :]
