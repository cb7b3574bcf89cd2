"""The writer: every frame encoded once, any order of sections, nothing lost and nothing left behind."""

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from isoframe.engine.errors import ConfigError, InputError
from isoframe.engine.media import codecs, mp4, segments, video
from isoframe.engine.media.source_video import first_frame
from isoframe.engine.media.video import VideoWriter, read_video_info

HEIGHT, WIDTH = 64, 96
METADATA = {"request": {"prompt": 'a "red" circle\nmoves', "seed": 7}, "model": "0123abcd"}


def start_process(script, *arguments, **options):
    """Run ``script`` in a Python of its own."""
    command = [sys.executable, "-P", "-c", textwrap.dedent(script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(video.__file__).parents[2])}
    return subprocess.Popen(command, env=environment, text=True, **options)


def moving_clip(num_frames, height=HEIGHT, width=WIDTH):
    """A soft disc on a gradient; every frame differs from every other. uint8 [T, H, W, 3]."""
    t, y, x = np.ogrid[:num_frames, :height, :width]
    phase = 2 * np.pi * t / 90
    distance = np.hypot(x - width * (0.5 + 0.3 * np.cos(phase)), y - height * (0.5 + 0.3 * np.sin(phase)))
    disc = np.clip((12 - distance) / 4, 0, 1)[..., None]
    ground = np.stack(np.broadcast_arrays(80 + y + 0 * t, 60 + x + 0 * t, 40 + 0.05 * t + 0 * x), axis=-1)
    return (ground * (1 - disc) + np.array([220, 60, 40]) * disc).astype(np.uint8)


def spans_of(num_sections, order, window=9):
    """What SectionDecoder releases: (first_frame, num_frames) in generation order."""
    step, last = 4 * window, 8 * window + 1
    if num_sections == 1:
        return [(0, step + 1)]
    if order == "forward":
        middle = [(4 + step * i, step) for i in range(num_sections - 2)]
        return [(0, 4), *middle, (step * num_sections + 1 - (last - 4), last - 4)]
    num_frames = step * num_sections + 1
    return [*((num_frames - step * i, step) for i in range(1, num_sections - 1)), (0, last)]


def make_writer(path, num_frames, **options):
    options = {"height": HEIGHT, "width": WIDTH, "metadata": METADATA, **options}
    names = {"height", "width", "fps", "crf", "codec"} & options.keys()
    video_format = codecs.VideoFormat(**{name: options.pop(name) for name in names})
    return VideoWriter(path, video_format, num_frames=num_frames, **options)


def write_video(path, clip, spans, **options):
    with make_writer(path, len(clip), height=clip.shape[1], width=clip.shape[2], **options) as writer:
        for first_frame, num_frames in spans:
            writer.write(clip[first_frame : first_frame + num_frames], first_frame)
        return writer.finish()


def decode(path):
    """Frames uint8 [T, H, W, 3] and presentation times in frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        times = [frame.pts * stream.time_base * stream.average_rate for frame in decoded]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]), times


def psnr(decoded, expected):
    """Of each frame, in dB."""
    error = (decoded.astype(float) - expected) ** 2
    return 10 * np.log10(255**2 / error.mean(axis=(1, 2, 3)))


@pytest.mark.parametrize(("crf", "least_psnr"), [(0, 37), (16, 34)])
@pytest.mark.parametrize("order", ["inverted", "forward"])
@pytest.mark.parametrize("num_sections", [1, 2, 4])
def test_the_file_holds_every_frame_once_in_order(num_sections, order, crf, least_psnr, tmp_path):
    clip = moving_clip(36 * num_sections + 1)
    result = write_video(tmp_path / "a.mp4", clip, spans_of(num_sections, order), crf=crf)
    decoded, times = decode(result.path)
    assert times == list(range(len(clip)))
    quality = psnr(decoded, clip)
    assert quality.min() >= least_psnr
    # Neighbouring frames are less alike than a frame and its own copy, so the order is right too.
    assert (quality[1:] > psnr(decoded[1:], clip[:-1])).all()


def test_arrival_order_does_not_change_the_file(tmp_path):
    clip, spans = moving_clip(145), [(0, 73), (73, 36), (109, 36)]
    first = write_video(tmp_path / "a.mp4", clip, spans)
    second = write_video(tmp_path / "b.mp4", clip, spans[::-1])
    assert first.path.read_bytes() == second.path.read_bytes()


@pytest.mark.parametrize(
    ("codec", "width", "times"),
    [("h264", WIDTH, 40), ("hevc", WIDTH, 6), ("hevc", 64, 40), ("av1", WIDTH, 6)],
)
def test_the_same_frames_give_the_same_bytes(codec, width, times):
    """Fails most of the time if x264 may use its AVX-512 code, or x265 a unit as wide as the picture."""
    clip = np.ascontiguousarray(moving_clip(36)[:, :, :width])
    video_format = codecs.VideoFormat(height=HEIGHT, width=width, fps=30, crf=16, codec=codec)
    encodings, memory = set(), random.Random(0)
    for _ in range(times):
        # What memory holds that nobody wrote.
        blocks = [bytes([memory.randrange(256)]) * memory.randrange(10, 200_000) for _ in range(30)]
        del blocks[::2]
        segment = segments.SegmentSpool.in_memory().append(video_format, clip, 0)
        encodings.add(b"".join(data for data, _ in segment.packets()))
    assert len(encodings) == 1


def test_packets_have_increasing_times_and_one_key_frame_a_segment(tmp_path):
    clip, spans = moving_clip(109), [(73, 36), (0, 73)]
    write_video(tmp_path / "a.mp4", clip, spans)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        frame = 1 / (stream.time_base * stream.average_rate)
        assert [packet.pts / frame for packet in packets if packet.is_keyframe] == [0, 73]
        assert all(b.dts - a.dts == frame for a, b in itertools.pairwise(packets))
        assert all(packet.pts >= packet.dts and packet.duration == frame for packet in packets)
        assert sorted(packet.pts / frame for packet in packets) == list(range(109))


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_other_codecs_join_their_segments_in_any_order(tmp_path, codec):
    clip = moving_clip(109)
    for name, spans in (("a", [(0, 73), (73, 36)]), ("b", [(73, 36), (0, 73)])):
        written = write_video(tmp_path / f"{name}.mp4", clip, spans, codec=codec)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(written.path)) as container:
        assert container.streams.video[0].codec_context.name in (codec, "libdav1d")
        assert container.streams.video[0].duration * container.streams.video[0].time_base * 30 == 109
    decoded, _ = decode(written.path)
    assert len(decoded) == 109
    assert np.square(decoded.astype(float) - clip).mean() < 20


def test_a_quality_or_size_that_the_codec_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"crf must be from 0 \(lossless\) to 63 for av1, got 64"):
        codecs.VideoFormat(height=64, width=64, fps=30, crf=64, codec="av1")
    with pytest.raises(ConfigError, match="AV1 needs at least 64 px a side"):
        codecs.VideoFormat(height=64, width=48, fps=30, crf=20, codec="av1")
    with pytest.raises(ConfigError, match="HEVC needs a width of at least 64 px, got 96x48; take codec h264"):
        codecs.VideoFormat(height=96, width=48, fps=30, crf=20, codec="hevc")
    with pytest.raises(ConfigError, match="did you mean 'hevc'"):
        codecs.VideoFormat(height=64, width=64, fps=30, crf=20, codec="hevv")


def test_segments_decode_on_their_own(tmp_path):
    """Closed GOPs: seeking to a segment needs nothing before it."""
    clip = moving_clip(109)
    write_video(tmp_path / "a.mp4", clip, [(73, 36), (0, 73)])
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        container.seek(int(73 / (stream.time_base * stream.average_rate)), stream=stream)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert psnr(decoded, clip[73:]).min() >= 34


@pytest.mark.parametrize("spans", [[(i, 1) for i in range(9)], [(7, 2), (0, 1), (1, 6)], [(3, 6), (0, 3)]])
def test_short_segments_beside_long_ones(spans, tmp_path):
    """A one-frame segment has no reordering delay of its own."""
    clip = moving_clip(9)
    write_video(tmp_path / "a.mp4", clip, spans)
    decoded, times = decode(tmp_path / "a.mp4")
    assert times == list(range(9))
    assert psnr(decoded, clip).min() >= 34


def test_what_a_player_reads(tmp_path):
    clip = moving_clip(37)
    result = write_video(tmp_path / "a.mp4", clip, [(0, 37)], fps=24)
    assert (result.num_frames, result.fps, result.height, result.width) == (37, 24, HEIGHT, WIDTH)
    assert read_video_info(result.path) == result
    with av.open(str(result.path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames, stream.start_time) == (24, 37, 0)
        assert stream.duration * stream.time_base == Fraction(37, 24)
        context = stream.codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (
            1,
            1,
            1,
            1,
        )
        assert json.loads(container.metadata["comment"]) == METADATA


def test_the_index_is_in_front_of_the_data(tmp_path):
    data = write_video(tmp_path / "a.mp4", moving_clip(37), [(0, 37)]).path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_the_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    result = write_video(tmp_path / "a.mp4", moving_clip(5), [(0, 5)])
    assert result.path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_tensors_are_accepted(tmp_path):
    with make_writer(tmp_path / "a.mp4", 5) as writer:
        writer.write(torch.from_numpy(moving_clip(5)), 0)
        writer.finish()
    assert psnr(decode(tmp_path / "a.mp4")[0], moving_clip(5)).min() >= 34


def process_bytes():
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])


@pytest.mark.parametrize("num_sections", [4, 50])
@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_bytes_written_are_at_most_twice_the_file(num_sections, order, tmp_path):
    clip = moving_clip(36 * num_sections + 1, 64, 64)
    has_io = Path("/proc/self/io").exists()
    before = process_bytes() if has_io else 0
    with make_writer(tmp_path / "a.mp4", len(clip), width=64) as writer:
        for first_frame, num_frames in spans_of(num_sections, order):
            writer.write(clip[first_frame : first_frame + num_frames], first_frame)
        writer.finish()
    if has_io:
        # The muxer comes back for a size field; the room it leaves for the index counts as written here.
        assert abs(process_bytes() - before - writer.num_bytes_written) <= 64
    assert writer.num_bytes_written <= 2.0 * (tmp_path / "a.mp4").stat().st_size


def test_each_frame_is_encoded_once(tmp_path, monkeypatch):
    counts = []
    encode = segments._encode_frames
    monkeypatch.setattr(
        segments,
        "_encode_frames",
        lambda encoder, frames: counts.append(len(frames)) or encode(encoder, frames),
    )
    with make_writer(tmp_path / "a.mp4", 145) as writer:
        for first_frame, num_frames in spans_of(4, "inverted"):
            writer.write(moving_clip(145)[first_frame : first_frame + num_frames], first_frame)
            writer.write_partial()
        writer.finish()
    assert sum(counts) == 145


def test_partial_file_of_the_end_with_a_preview_in_front(tmp_path):
    clip = moving_clip(145)
    with make_writer(tmp_path / "a.mp4", 145) as writer:
        writer.write(clip[:0], 145)
        writer.write(clip[109:], 109)
        path = writer.write_partial(preview=(clip[76:109], 76)).path
        assert path == tmp_path / "a.partial.mp4"
        decoded, times = decode(path)
        assert times == list(range(69))
        assert psnr(decoded, clip[76:]).min() >= 34
        assert read_video_info(path).metadata == {
            **METADATA,
            "partial": {"first_frame": 76, "num_frames": 69},
        }
        # The preview is not kept, and its frames come again as final ones.
        writer.write(clip[73:109], 73)
        assert len(decode(writer.write_partial(tmp_path / "sub" / "b.mp4").path)[0]) == 72
        writer.write(clip[:73], 0)
        writer.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "sub"]


def test_partial_file_is_the_longest_run(tmp_path):
    clip = moving_clip(40)
    with make_writer(tmp_path / "a.mp4", 40) as writer:
        for start, stop in ((0, 4), (20, 25), (25, 31)):
            writer.write(clip[start:stop], start)
        decoded, _ = decode(writer.write_partial(preview=(clip[5:10], 5)).path)
    assert psnr(decoded, clip[20:31]).min() >= 34
    assert (tmp_path / "a.partial.mp4").exists()


def test_preview_alone_makes_a_partial_file(tmp_path):
    clip = moving_clip(37)
    with make_writer(tmp_path / "a.mp4", 37) as writer:
        assert len(decode(writer.write_partial(preview=(clip[4:37], 4)).path)[0]) == 33


def test_partial_file_never_takes_the_place_of_an_earlier_job_s(tmp_path):
    for name in ("a.partial.mp4", "a.partial-2.mp4"):
        (tmp_path / name).write_text("precious")
    clip = moving_clip(10)
    with make_writer(tmp_path / "a.mp4", 10) as writer:
        writer.write(clip[:5], 0)
        for _ in range(2):
            assert writer.write_partial().path == tmp_path / "a.partial-3.mp4"
        writer.write(clip[5:], 5)
        writer.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "a.partial-2.mp4", "a.partial.mp4"]
    assert (tmp_path / "a.partial.mp4").read_text() == "precious"


def test_partial_file_of_nothing(tmp_path):
    with (
        make_writer(tmp_path / "a.mp4", 37) as writer,
        pytest.raises(InputError, match=r"no frame .* finished yet"),
    ):
        writer.write_partial()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_when_the_job_ends_early(error, tmp_path):
    def job():
        with make_writer(tmp_path / "out" / "a.mp4", 145) as writer:
            writer.write(moving_clip(36), 109)
            raise error

    with pytest.raises(error):
        job()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process on Windows")
def test_ctrl_c_while_joining(tmp_path):
    """A real signal, in a process that does nothing but join; lost if it hits a Python callback of the muxer."""
    script = """
        import os, sys
        import numpy as np
        from isoframe.engine.media.codecs import VideoFormat
        from isoframe.engine.media.video import VideoWriter

        clip = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
        with VideoWriter(sys.argv[1], VideoFormat(height=64, width=64), num_frames=400) as writer:
            for first_frame in range(0, 400, 20):
                writer.write(clip, first_frame)
            for _ in range(8):
                try:
                    while True:
                        writer.write_partial()
                        os.write(1, b"joined\\n")
                except KeyboardInterrupt:
                    names = os.listdir(os.path.dirname(sys.argv[1]))
                    os.write(1, f"interrupted {sorted(names)}\\n".encode())
    """
    with start_process(script, tmp_path / "a.mp4", stdout=subprocess.PIPE) as process:
        for trial in range(8):
            for _ in range(trial + 1):
                assert process.stdout.readline() == "joined\n"
            process.send_signal(signal.SIGINT)
            lines = itertools.islice(iter(process.stdout.readline, ""), 100)
            answer = next((line for line in lines if line != "joined\n"), "the interrupt was lost")
            assert answer == "interrupted ['a.partial.mp4']\n"
    assert process.returncode == 0


@pytest.mark.parametrize("comment", [b"caf\xe9", b"[" * 50_000, b'{"seed": 1e999}', b'{"a": "\\ud800"}'])
def test_metadata_that_others_wrote_is_no_obstacle(tmp_path, comment):
    path = tmp_path / "a.mp4"
    mark = b"x" * len(comment)
    write_video(path, moving_clip(5), [(0, 5)], metadata={"text": mark.decode()})
    content = path.read_bytes()
    # The comment begins with the text of the metadata: others take its place, as long as it is.
    whole = json.dumps({"text": mark.decode()}).encode()
    assert content.count(whole) == 1
    path.write_bytes(content.replace(whole, comment.ljust(len(whole))))
    assert read_video_info(path).num_frames == 5
    assert read_video_info(path).metadata == {}


LISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_other_files_is_no_video(tmp_path, kind):
    other = write_video(tmp_path / "other.mp4", moving_clip(5), [(0, 5)]).path
    path = tmp_path / "list.mp4"
    path.write_text(LISTS[kind].format(other))
    for read in (read_video_info, first_frame):
        with pytest.raises(InputError, match=r"list\.mp4"):
            read(path)


@pytest.mark.parametrize("name", ["a:b.mp4", "http:x.mp4", "100%d é.mp4"])
def test_names_that_ffmpeg_could_misread(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = write_video(Path(name), moving_clip(5), [(0, 5)])
    assert (tmp_path / name).exists()
    assert read_video_info(Path(name)) == result


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "Input/output error")])
def test_nothing_is_left_when_the_join_ends_early(error, tmp_path, monkeypatch):
    def packets(*args):
        yield from itertools.islice(timed_packets(*args), 20)
        raise error

    timed_packets = mp4._timed_packets
    (tmp_path / "a.mp4").write_text("what was there before")
    with make_writer(tmp_path / "a.mp4", 37, overwrite=True) as writer:
        writer.write(moving_clip(37), 0)
        monkeypatch.setattr(mp4, "_timed_packets", packets)
        with pytest.raises((KeyboardInterrupt, InputError)):
            writer.finish()
        assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
        assert (tmp_path / "a.mp4").read_text() == "what was there before"
        monkeypatch.undo()
        assert writer.finish().num_frames == 37
    assert len(decode(tmp_path / "a.mp4")[0]) == 37


def test_an_interrupted_write_leaves_the_segments_as_they_were(tmp_path, monkeypatch):
    def interrupted(file, data):
        file.write(data[:100])
        raise KeyboardInterrupt

    clip = moving_clip(72)
    with make_writer(tmp_path / "a.mp4", 72) as writer:
        writer.write(clip[36:], 36)
        with monkeypatch.context() as patch:
            patch.setattr(segments, "_write_all", interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.write(clip[:36], 0)
        assert len(decode(writer.write_partial().path)[0]) == 36
        writer.write(clip[:36], 0)
        writer.finish()
    assert psnr(decode(tmp_path / "a.mp4")[0], clip).min() >= 34


class SmallDisk:
    """A file system with room for ``capacity`` bytes, watched at the two places that write."""

    def __init__(self, monkeypatch, capacity):
        self.capacity = capacity
        self.spool_bytes = 0
        self.mux, self.close = mp4._mux, segments.SegmentSpool.close
        monkeypatch.setattr(segments, "allocate", self.allocate)
        monkeypatch.setattr(segments.SegmentSpool, "close", lambda spool: self.delete(spool))
        monkeypatch.setattr(mp4, "_mux", self.write)

    def check(self, num_bytes):
        if num_bytes > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def allocate(self, file, num_bytes):
        self.check(num_bytes)
        self.spool_bytes = num_bytes

    def delete(self, spool):
        self.spool_bytes = 0
        self.close(spool)

    def write(self, path, *args):
        self.mux(path, *args)
        self.check(self.spool_bytes + path.stat().st_size)


# Room for about two of the four segments of 40 frames of noise.
CAPACITY = 120_000


def write_in_tens(writer, clip):
    for start in range(0, len(clip), 10):
        writer.write(clip[start : start + 10], start)


def noise_clip(num_frames):
    return np.random.default_rng(0).integers(0, 256, (num_frames, HEIGHT, WIDTH, 3), np.uint8)


def test_disk_full_while_writing_keeps_the_finished_segments(tmp_path, monkeypatch):
    """The room that a segment could not have is not needed: the partial file takes the segments' own room."""
    clip = noise_clip(40)
    SmallDisk(monkeypatch, CAPACITY)
    with make_writer(tmp_path / "a.mp4", 40) as writer:
        with pytest.raises(InputError, match="No space left on device") as raised:
            write_in_tens(writer, clip)
        num_finished = writer.num_final_frames
        assert 0 < num_finished < 40
        assert str(tmp_path / "a.mp4") in str(raised.value)
        # What becomes of the finished frames is told by whoever writes the partial file.
        assert str(raised.value).endswith("No space left on device; free some space or choose another folder")
        assert len(decode(writer.write_partial().path)[0]) == num_finished
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial.mp4"]


def test_disk_with_room_for_one_copy_only(tmp_path, monkeypatch):
    clip = noise_clip(20)
    size = write_video(tmp_path / "reference.mp4", clip, [(0, 20)]).path.stat().st_size
    SmallDisk(monkeypatch, round(1.5 * size))
    write_video(tmp_path / "a.mp4", clip, [(0, 20)])
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "reference.mp4").read_bytes()


def test_disk_full_while_joining(tmp_path, monkeypatch):
    clip = noise_clip(20)
    size = write_video(tmp_path / "reference.mp4", clip, [(0, 20)]).path.stat().st_size
    with make_writer(tmp_path / "a.mp4", 20) as writer:
        writer.write(clip, 0)
        with monkeypatch.context() as patch:
            SmallDisk(patch, size // 2)
            with pytest.raises(
                InputError, match=r"cannot write .*a\.mp4: No space left on device; free some space"
            ):
                writer.finish()
        assert [path.name for path in tmp_path.iterdir()] == ["reference.mp4"]
        assert len(decode(writer.write_partial().path)[0]) == 20


def test_a_real_limit_of_the_file_size(tmp_path):
    """The kernel's own refusal, in a process of its own."""
    resource = pytest.importorskip("resource")
    script = """
        import resource, sys
        import numpy as np
        from isoframe.engine.errors import InputError
        from isoframe.engine.media.codecs import VideoFormat
        from isoframe.engine.media.video import VideoWriter, read_video_info

        clip = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), np.uint8)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with VideoWriter(sys.argv[1], VideoFormat(height=64, width=96), num_frames=40) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
            try:
                for start in range(0, 40, 10):
                    writer.write(clip[start : start + 10], start)
            except InputError as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            try:
                writer.write_partial()
            except InputError as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            print(read_video_info(writer.write_partial().path).num_frames, writer.num_final_frames)
    """
    assert resource.RLIMIT_FSIZE
    with start_process(script, tmp_path / "a.mp4", CAPACITY, stdout=subprocess.PIPE) as process:
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    reason = "the file would be larger than its file system, or a limit of this process, allows"
    assert lines[0].startswith(f"cannot write {tmp_path / 'a.mp4'}: {reason}")
    assert lines[1].startswith(f"cannot write {tmp_path / 'a.partial.mp4'}: {reason}")
    assert "ulimit -f" in lines[1]
    num_frames, num_final_frames = lines[2].split()
    assert 0 < int(num_frames) == int(num_final_frames) < 40


def test_segments_with_other_parameters_are_not_joined(tmp_path):
    with make_writer(tmp_path / "a.mp4", 20) as writer:
        writer.write(moving_clip(10), 0)
        writer._spool.extradata += b"\0"
        with pytest.raises(RuntimeError, match="changed its parameter sets"):
            writer.write(moving_clip(20)[10:], 10)
        with pytest.raises(RuntimeError, match=r"must share their parameter sets"):
            writer.write_partial()
    assert list(tmp_path.iterdir()) == []


def test_existing_output_needs_overwrite(tmp_path):
    (tmp_path / "a.mp4").write_text("mine")
    with pytest.raises(InputError, match=r"a\.mp4 exists; pass --overwrite"):
        make_writer(tmp_path / "a.mp4", 5)
    assert (tmp_path / "a.mp4").read_text() == "mine"
    write_video(tmp_path / "a.mp4", moving_clip(5), [(0, 5)], overwrite=True)
    assert read_video_info(tmp_path / "a.mp4").num_frames == 5


def test_missing_output_folder_is_made(tmp_path):
    assert write_video(tmp_path / "x" / "y" / "a.mp4", moving_clip(5), [(0, 5)]).path.exists()


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")]
)
def test_folder_that_cannot_be_written_is_refused_before_any_work(error, tmp_path, monkeypatch):
    def refuse(**_):
        raise error

    # Permission bits do not stop the super-user, who runs tests in containers.
    monkeypatch.setattr(segments.tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=f"output folder {tmp_path} cannot be written: {error.strerror}"):
        make_writer(tmp_path / "a.mp4", 5)


def test_output_below_a_file(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError) as raised:
        make_writer(tmp_path / "a" / "b" / "c.mp4", 5)
    assert f"{tmp_path / 'a'} is a file, not a folder; choose another folder" in str(raised.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_device_is_no_output():
    with pytest.raises(InputError, match="output must be a file of its own, /dev/full is a device or a pipe"):
        make_writer("/dev/full", 5, overwrite=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"output must be a file, .* is a folder; add a file name such as .*video\.mp4"),
        ("a.avi", r"output must end in \.mp4, got .*a\.avi; use .*a\.mp4"),
        ("a", r"output must end in \.mp4, got .*a; use .*a\.mp4"),
    ],
)
def test_unusable_output_names(name, message, tmp_path):
    with pytest.raises(InputError, match=message):
        make_writer(tmp_path / name, 5)


def test_finish_needs_all_frames(tmp_path):
    with make_writer(tmp_path / "a.mp4", 10) as writer:
        writer.write(moving_clip(4), 0)
        with pytest.raises(ValueError, match="needs 10 frames, 4 are written"):
            writer.finish()


@pytest.mark.parametrize("first_frame", [2, 4, 9])
def test_a_frame_comes_once(first_frame, tmp_path):
    with make_writer(tmp_path / "a.mp4", 20) as writer:
        writer.write(moving_clip(6), 4)
        with pytest.raises(ValueError, match="frames 4 to 9 are written already"):
            writer.write(moving_clip(3), first_frame)


@pytest.mark.parametrize(
    ("frames", "first_frame", "message"),
    [
        (moving_clip(3), 18, "frames must lie in 0 to 19, got 18 to 20"),
        (moving_clip(3), -1, "frames must lie in 0 to 19, got -1 to 1"),
        (moving_clip(3, 32), 0, r"frames must be uint8 \[T, 64, 96, 3\], got uint8 \(3, 32, 96, 3\)"),
        (moving_clip(3) / 255, 0, r"got float64"),
    ],
)
def test_wrong_frames(frames, first_frame, message, tmp_path):
    with make_writer(tmp_path / "a.mp4", 20) as writer, pytest.raises(ValueError, match=message):
        writer.write(frames, first_frame)


@pytest.mark.parametrize("options", [{"height": 63}, {"width": 0}, {"crf": 52}, {"fps": 0}])
def test_wrong_formats(options, tmp_path):
    with pytest.raises(ConfigError, match=next(iter(options))):
        make_writer(tmp_path / "a.mp4", 5, **options)


def test_info_of_what_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    for name, message in (("b.mp4", "is missing"), ("", "is a folder"), ("a.mp4", "must be readable")):
        with pytest.raises(InputError, match=message):
            read_video_info(tmp_path / name)


@pytest.mark.parametrize("comment", ["", "holiday", "[1, 2]"])
def test_info_of_a_foreign_file(comment, tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for pixels in moving_clip(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    info = read_video_info(tmp_path / "a.mp4")
    assert (info.num_frames, info.fps, info.seconds, info.metadata) == (5, 25, 0.2, {})
