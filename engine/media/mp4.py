"""MP4 files from finished segments: packets are copied, never encoded again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import output_when_whole
from .codecs import VideoFormat, open_mp4
from .segments import Segment

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream


def index_bytes(num_frames: int, num_keys: int, num_bytes: int, comment: str) -> int:
    """Room that the index of an MP4 needs at most.

    Per frame: size 4 and composition offset 8, and 4 for each key frame; per MiB
    (one chunk): offset 8 and chunk table 12. What does not grow takes less than 1 KiB.
    """
    return 12 * num_frames + 4 * num_keys + 20 * (num_bytes // 2**20 + 1) + 1024 + len(comment.encode())


def write_mp4(
    path: Path,
    video_format: VideoFormat,
    segments: Sequence[Segment],
    metadata: Mapping[str, object],
    token: str | None = None,
    *,
    overwrite: bool = True,
) -> int:
    """Join ``segments`` (in video order, without gaps) into ``path``, which appears complete or not at all.

    Args:
        path: the MP4.
        video_format: of all segments.
        segments: in video order, without gaps.
        metadata: stored as the file's ``comment``.
        token: tells the temporary file from those of other jobs, see :class:`WholeFile`; None is a new one.
        overwrite: whether a file that is there, by then, is replaced.

    Returns:
        Bytes written.
    """
    with output_when_whole(path, token, overwrite=overwrite) as temporary:
        _mux(temporary, video_format, segments, metadata)
    return path.stat().st_size


def _mux(
    path: Path, video_format: VideoFormat, segments: Sequence[Segment], metadata: Mapping[str, object]
) -> None:
    num_frames = sum(segment.num_frames for segment in segments)
    num_keys = sum(coded.is_key for segment in segments for coded in segment.coded_frames)
    num_bytes = sum(segment.num_bytes for segment in segments)
    # The index goes to the front, where a browser wants it, without the second copy that faststart makes.
    moov_size = str(index_bytes(num_frames, num_keys, num_bytes, json.dumps(metadata)))
    with open_mp4(path, video_format, metadata, moov_size=moov_size) as (container, stream):
        container.start_encoding()
        extradata = bytes(stream.codec_context.extradata or b"")
        if any(segment.spool.extradata != extradata for segment in segments):
            raise RuntimeError("segments of one file must share their parameter sets")
        for packet in _timed_packets(video_format, segments):
            packet.stream = stream
            container.mux(packet)


def _timed_packets(video_format: VideoFormat, segments: Sequence[Segment]) -> Iterator["Packet[Stream]"]:
    """Packets in decoding order with one decoding time per packet, whatever the reordering inside a segment."""
    from av.packet import Packet

    # Frames that decoding must run ahead of display.
    delay = max(
        index - coded.position for segment in segments for index, coded in enumerate(segment.coded_frames)
    )
    decoding_index, start = 0, 0
    for segment in segments:
        for data, coded in segment.packets():
            packet = Packet(data)
            packet.pts, packet.dts = start + coded.position, decoding_index - delay
            packet.duration, packet.time_base = 1, Fraction(1, video_format.fps)
            packet.is_keyframe = coded.is_key
            yield packet
            decoding_index += 1
        start += segment.num_frames
