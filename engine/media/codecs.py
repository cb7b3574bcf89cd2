"""How frames become a video stream: size, pace, codec and quality."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import torch

from ..errors import ConfigError, DeviceError, IsoframeError
from ..request.config import CODECS, MAX_CRF, Request, check_choice

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_ENCODERS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}
# Below it x265 writes beyond its buffers.
_MIN_HEVC_WIDTH = 64
_BT709 = 1
_LIMITED_RANGE = 1


# What FFmpeg calls the containers that hold their own frames.
_VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,flv,asf,ogg,webp_pipe,yuv4mpegpipe"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFormat:
    """What every segment of a video shares.

    RGB is converted to BT.709, limited range, 4:2:0, and the stream is tagged so: an untagged small video
    would be read as BT.601 by some players and as BT.709 by others.

    Attributes:
        height: pixels, even.
        width: pixels, even.
        fps: frames per second.
        crf: 0 (lossless but for the colour conversion) to 51, for AV1 to 63; the scales of the codecs differ.
        codec: "h264", "hevc" or "av1".
    """

    height: int
    width: int
    fps: int = 30
    crf: int = 16
    codec: str = "h264"

    @classmethod
    def of(cls, request: Request, size: tuple[int, int]) -> Self:
        """The format of the video that ``request`` asks for, at ``size`` (height, width)."""
        return cls(height=size[0], width=size[1], fps=request.fps, crf=request.crf, codec=request.codec)

    def __post_init__(self) -> None:
        check_choice("codec", self.codec, CODECS)
        for name, value in (("height", self.height), ("width", self.width)):
            if value < 2 or value % 2:
                raise ConfigError(f"{name} must be even and at least 2 for yuv420p, got {value}")
        if self.fps < 1:
            raise ConfigError(f"fps must be at least 1, got {self.fps}")
        if not 0 <= self.crf <= MAX_CRF[self.codec]:
            raise ConfigError(
                f"crf must be from 0 (lossless) to {MAX_CRF[self.codec]} for {self.codec}, got {self.crf}"
            )
        if self.codec == "av1" and min(self.height, self.width) < 64:
            raise ConfigError(
                f"AV1 needs at least 64 px a side, got {self.height}x{self.width}; take codec h264"
            )

        if self.codec == "hevc" and self.width < _MIN_HEVC_WIDTH:
            raise ConfigError(
                f"HEVC needs a width of at least {_MIN_HEVC_WIDTH} px, got {self.height}x{self.width}; take codec h264"
            )

    @property
    def encoder(self) -> str:
        """Name of the encoder in FFmpeg."""
        return _ENCODERS[self.codec]

    def configure(self, context: "VideoCodecContext") -> None:
        """Give an unopened context of :attr:`encoder` the parameters of this format."""
        from av.codec.context import Flags

        context.width, context.height, context.pix_fmt = self.width, self.height, "yuv420p"
        context.time_base, context.framerate = Fraction(1, self.fps), Fraction(self.fps)
        context.color_range = _LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        # One copy of the parameter sets for the file instead of one in every segment.
        context.flags |= Flags.global_header
        context.options = {"crf": str(self.crf), **self._options()}
        if self.codec == "hevc":
            # Apple's players know the other tag, which FFmpeg takes by itself, only in streams.
            context.codec_tag = "hvc1"

    def open_encoder(self) -> "VideoCodecContext":
        """A fresh encoder; its ``extradata`` (parameter sets) is the same every time."""
        import av
        from av.codec.codec import UnknownCodecError

        if self.codec == "av1":
            # SVT-AV1 has no other way to keep it from printing its settings.
            os.environ.setdefault("SVT_LOG", "1")
        try:
            context = cast("VideoCodecContext", av.CodecContext.create(self.encoder, "w"))
        except UnknownCodecError:
            raise DeviceError(
                f"this build of PyAV has no {self.encoder}; take codec h264, or pip install --force-reinstall av"
            ) from None
        self.configure(context)
        with encoder_errors(self.encoder):
            context.open()
        return context

    def parameter_sets(self) -> bytes:
        """What this machine's encoder puts before a stream; segments of another encoder do not join."""
        return bytes(self.open_encoder().extradata or b"")

    def _options(self) -> dict[str, str]:
        if self.codec == "h264":
            return {"x264-params": f"open-gop=0{_instruction_set()}"}
        if self.codec == "hevc":
            # x265 reads memory that it never wrote where a picture is one coding tree unit (64 px) wide.
            unit = 32 if self.width == _MIN_HEVC_WIDTH else 64
            return {"x265-params": f"log-level=none:info=0:open-gop=0:ctu={unit}"}
        return {}


@contextmanager
def ffmpeg_errors(
    what: str, kind: type[IsoframeError], passed: tuple[type[Exception], ...] = (MemoryError,)
) -> Iterator[None]:
    """Where FFmpeg fails inside, raise an error of ``kind`` that says ``what`` it could not do, and its reason.

    Errors ``passed`` on are told elsewhere: those of memory, and those of the disk where FFmpeg writes.
    """
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, passed):
            raise
        raise kind(f"{what}: {error.strerror or error}") from error


def encoder_errors(encoder: str) -> AbstractContextManager[None]:
    """:func:`ffmpeg_errors` of an encoder, which touches no file."""
    remedy = "with another codec or more memory free it may work"
    return ffmpeg_errors(f"FFmpeg's encoder {encoder} failed ({remedy})", DeviceError)


@contextmanager
def open_mp4(
    path: Path, video_format: VideoFormat, metadata: Mapping[str, object], **options: str
) -> Iterator[tuple["OutputContainer", "VideoStream"]]:
    """A new MP4 with one stream of ``video_format``, whole on leaving.

    FFmpeg writes the file itself: an interrupt that arrives inside a Python file's write would be lost.

    Args:
        path: the file.
        video_format: of the stream.
        metadata: stored as the file's ``comment``.
        options: of FFmpeg's muxer.
    """
    import av

    with (
        ffmpeg_errors(f"FFmpeg could not write {path}", DeviceError, (MemoryError, OSError)),
        av.open(ffmpeg_url(path), "w", format="mp4", options=options) as container,
    ):
        container.metadata["comment"] = json.dumps(metadata)
        stream = cast("VideoStream", container.add_stream(video_format.encoder, rate=video_format.fps))
        video_format.configure(stream.codec_context)
        yield container, stream


def ffmpeg_url(path: Path) -> str:
    """What FFmpeg opens as ``path``, even if its name looks like a protocol."""
    return f"file:{path}"


def open_video(path: Path) -> "InputContainer":
    """A video file to read; what others wrote into it need not be UTF-8.

    Raises:
        FFmpegError, OSError: it is no video, or cannot be read.
    """
    import av

    # Playlists and lists of files would have FFmpeg read other files, or ask other machines.
    options = {"format_whitelist": _VIDEO_FORMATS, "protocol_whitelist": "file"}
    return av.open(ffmpeg_url(path), options=options, metadata_errors="replace")


def _instruction_set() -> str:
    """x264 without its AVX-512 code, which reads past the rows of its macroblock tree.

    With some widths (96 px is one) the same frames then give other bytes each time. AVX2 gives the bytes of the
    plain C code. Naming an instruction set replaces x264's own detection, hence only where AVX-512 is.
    """
    return ":asm=AVX2" if torch.backends.cpu.get_cpu_capability() == "AVX512" else ""
