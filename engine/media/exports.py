"""Other files of a finished video: animated GIF and WebP, and more frames per second by motion interpolation."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..device import machine_errors
from ..errors import ConfigError, DeviceError, InputError
from ..files import expanded, make_folder, output_when_whole, writing
from ..output_paths import check_apart, check_export_path
from .codecs import VideoFormat, encoder_errors, ffmpeg_errors, ffmpeg_url, open_mp4, open_video
from .video import Video, read_video_info

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import OutputContainer
    from av.filter import Graph
    from av.packet import Packet
    from av.video.stream import VideoStream

# FFmpeg's own, by the suffix of the file.
# RGB for WebP too: libwebp means other YUV values than the video's.
_ENCODERS = {".gif": ("gif", "gif", "pal8"), ".webp": ("webp", "libwebp_anim", "bgra")}
_MAX_FACTOR = 8
# FFmpeg stores a GIF's times in hundredths of a second; browsers show frames shorter than two as ten.
_MAX_GIF_FPS = 50


def export_video(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    interpolate: int = 1,
    codec: str = "h264",
    crf: int = 16,
    overwrite: bool = False,
) -> Video:
    """Write another file of a video, in bounded memory; the video stays as it is.

    Args:
        source: a video file.
        target: ends in .gif or .webp (both endless loops), or in .mp4.
        interpolate: frames per second become so many times as many, up to 8. FFmpeg's minterpolate makes up the frames
            between: a post-process, which no model takes part in, and which the metadata of an MP4 says.
        codec: of an MP4: "h264", "hevc" or "av1".
        crf: quality of an MP4.
        overwrite: replace an existing file.

    Returns:
        The file. A GIF has at most 50 frames per second, and no metadata, as a WebP has none.

    Raises:
        InputError: the source cannot be read or the target not written.
        ConfigError: an option cannot be.
    """
    source, target = expanded(source), Path(expanded(target))
    if isinstance(interpolate, bool) or not 1 <= interpolate <= _MAX_FACTOR:
        raise ConfigError(f"interpolate must be from 1 to {_MAX_FACTOR}, got {interpolate}")
    check_export_path(target, overwrite=overwrite)
    check_apart([target], [source])
    video = read_video_info(source)
    if video.fps <= 0 or video.num_frames == 0:
        raise InputError(f"{source} has no frames with times; export an MP4 that isoframe made")
    make_folder("output", target.parent)
    with (
        machine_errors("the export"),
        writing(target),
        output_when_whole(target, overwrite=overwrite) as temporary,
    ):
        if target.suffix.lower() == ".mp4":
            _write_mp4(video, temporary, interpolate, codec, crf)
        else:
            _write_animation(video, temporary, target.suffix.lower(), interpolate)
    return _described(target, video, interpolate)


def export_metadata(video: Video, video_format: VideoFormat, interpolate: int) -> dict[str, object]:
    """Metadata of an MP4 made from ``video``: that of the video, and what was done to it."""
    made = {"from": video.path.name, "codec": video_format.codec, "crf": video_format.crf}
    if interpolate > 1:
        made |= {"interpolate": interpolate, "filter": "minterpolate (FFmpeg)"}
    return {**video.metadata, "post_process": made}


def _described(target: Path, video: Video, interpolate: int) -> Video:
    if target.suffix.lower() == ".mp4":
        return read_video_info(target)
    # Neither muxer writes a number of frames that could be read back without decoding.
    fps = _animation_fps(video, target.suffix.lower(), interpolate)
    return Video(
        path=target, num_frames=round(video.seconds * fps), fps=fps, width=video.width, height=video.height,
        seconds=video.seconds,
    )  # fmt: skip


def _animation_fps(video: Video, suffix: str, interpolate: int) -> float:
    fps = video.fps * interpolate
    return min(fps, _MAX_GIF_FPS) if suffix == ".gif" else fps


def _write_mp4(video: Video, path: Path, interpolate: int, codec: str, crf: int) -> None:
    fps = round(video.fps * interpolate)
    video_format = VideoFormat(height=video.height, width=video.width, fps=fps, crf=crf, codec=codec)
    # It says so here if the encoder is missing.
    video_format.open_encoder()
    metadata = export_metadata(video, video_format, interpolate)
    frames = _frames(video.path, [*_interpolation(video, interpolate), "format=yuv420p"])
    with open_mp4(path, video_format, metadata, movflags="faststart") as (container, stream):
        _encode(container, stream, frames)


def _write_animation(video: Video, path: Path, suffix: str, interpolate: int) -> None:
    import av
    from av.codec.codec import UnknownCodecError

    name, encoder, pixels = _ENCODERS[suffix]
    fps = Fraction(_animation_fps(video, suffix, interpolate)).limit_denominator(1001)
    filters = [*_interpolation(video, interpolate), f"fps={fps}"]
    try:
        with (
            ffmpeg_errors(
                f"FFmpeg could not write {path}", DeviceError, (MemoryError, OSError, UnknownCodecError)
            ),
            av.open(ffmpeg_url(path), "w", format=name, options={"loop": "0"}) as container,
        ):
            stream = cast("VideoStream", container.add_stream(encoder, rate=fps))
            stream.width, stream.height, stream.pix_fmt = video.width, video.height, pixels
            if suffix == ".gif":
                frames = _with_palette(video.path, filters)
            else:
                stream.options = {"quality": "85"}
                frames = _frames(video.path, [*filters, f"format={pixels}"])
            _encode(container, stream, frames)
    except UnknownCodecError:
        raise DeviceError(f"this build of PyAV has no {encoder}; pip install --force-reinstall av") from None


def _interpolation(video: Video, factor: int) -> list[str]:
    """The filter that makes up frames: motion estimated both ways, overlapped blocks."""
    if factor == 1:
        return []
    fps = Fraction(video.fps * factor).limit_denominator(1001)
    return [f"minterpolate=fps={fps}:mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1"]


def _encode(container: "OutputContainer", stream: "VideoStream", frames: Iterator["VideoFrame"]) -> None:
    for position, frame in enumerate(frames):
        frame.pts, frame.time_base = position, 1 / Fraction(stream.codec_context.framerate)
        container.mux(_encoded(stream, frame))
    container.mux(_encoded(stream, None))


def _encoded(stream: "VideoStream", frame: "VideoFrame | None") -> "list[Packet[VideoStream]]":
    with encoder_errors(stream.codec_context.name):
        return stream.encode(frame)


def _frames(path: Path, filters: list[str]) -> Iterator["VideoFrame"]:
    """Frames of a video after ``filters``."""
    from av.filter import Graph

    with ffmpeg_errors(f"{path} cannot be decoded", InputError), open_video(path) as container:
        stream = container.streams.video[0]
        if stream.codec_context.format is None:
            raise InputError(f"{path} cannot be decoded: its stream says no pixel format")
        graph = Graph()
        graph.link_nodes(
            graph.add_buffer(template=stream),
            *(graph.add(*text.split("=", 1)) for text in filters),
            graph.add("buffersink"),
        ).configure()
        for frame in container.decode(stream):
            graph.push(frame)
            yield from _pull(graph)
        graph.push(None)
        yield from _pull(graph)


def _with_palette(path: Path, filters: list[str]) -> Iterator["VideoFrame"]:
    """Frames in 256 colours, which are chosen for the whole video in a pass of their own."""
    from av.filter import Graph

    palette = next(_frames(path, [*filters, "format=rgb32", "palettegen=stats_mode=diff"]), None)
    if palette is None:
        raise InputError(f"{path} has no frame that can be decoded")
    graph: Graph | None = None
    for frame in _frames(path, [*filters, "format=rgb32"]):
        if graph is None:
            graph = Graph()
            source, colours = (
                graph.add_buffer(
                    width=picture.width,
                    height=picture.height,
                    format=picture.format,
                    time_base=Fraction(1, 1000),
                )
                for picture in (frame, palette)
            )
            use, sink = graph.add("paletteuse", "dither=bayer:bayer_scale=4"), graph.add("buffersink")
            source.link_to(use, 0, 0)
            colours.link_to(use, 0, 1)
            use.link_to(sink)
            graph.configure()
            palette.pts = 0
            colours.push(palette)
            colours.push(None)
        source.push(frame)
        yield from _pull(graph)
    if graph is not None:
        source.push(None)
        yield from _pull(graph)


def _pull(graph: "Graph") -> Iterator["VideoFrame"]:
    """What the filters have ready."""
    import av

    while True:
        try:
            yield cast("VideoFrame", graph.pull())
        except (av.error.BlockingIOError, av.error.EOFError):
            return
