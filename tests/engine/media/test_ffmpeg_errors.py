"""What FFmpeg fails with is told as what it is: an encoder, a source, the disk, or the memory."""

import errno
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from isoframe.engine import DeviceError, InputError, IsoframeError
from isoframe.engine.media import exports, segments
from isoframe.engine.media.codecs import VideoFormat
from isoframe.engine.media.exports import export_video
from isoframe.engine.media.video import VideoWriter

FRAMES = np.zeros((9, 64, 64, 3), np.uint8)
FORMAT = VideoFormat(height=64, width=64, fps=30)


def write(path: Path) -> Path:
    with VideoWriter(path, FORMAT, num_frames=9) as writer:
        writer.write(FRAMES, 0)
        return writer.finish().path


def failing(kind: str, code: int) -> Any:
    error = getattr(av.error, kind)

    def fail(*_: Any, **__: Any) -> Any:
        raise error(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("kind", "code"),
    [("ExternalError", 1), ("ArgumentError", errno.EINVAL), ("OSError", errno.EIO), ("BugError", 2)],
)
def test_an_encoder_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int
) -> None:
    source = write(tmp_path / "source.mp4")
    monkeypatch.setattr(segments, "_encode_frames", failing(kind, code))
    with pytest.raises(DeviceError, match=f"encoder libx264 failed .*{os.strerror(code)}"):
        write(tmp_path / "a.mp4")
    monkeypatch.setattr(exports, "_pull", failing(kind, code))
    with pytest.raises(InputError, match=f"source.mp4 cannot be decoded: {os.strerror(code)}"):
        export_video(source, tmp_path / "b.gif")
    assert {path.name for path in tmp_path.iterdir()} == {"source.mp4"}


def test_too_little_memory_in_ffmpeg_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "source.mp4")
    monkeypatch.setattr(exports, "_pull", failing("MemoryError", errno.ENOMEM))
    with pytest.raises(DeviceError, match=r"the export stopped: Cannot allocate memory; .*ulimit"):
        export_video(source, tmp_path / "b.mp4")


def test_a_source_that_breaks_off_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "source.mp4")
    content = bytearray(source.read_bytes())
    place = content.index(b"mdat") + 4
    content[place:] = b"\xff" * (len(content) - place)
    source.write_bytes(content)
    with pytest.raises(IsoframeError, match=r"source\.mp4"):
        export_video(source, tmp_path / "b.gif")
    assert {path.name for path in tmp_path.iterdir()} == {"source.mp4"}
