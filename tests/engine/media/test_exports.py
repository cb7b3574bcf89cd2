"""Other files of a finished video: the same pictures in other formats, frames between them labelled as made up."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from isoframe.engine import ConfigError, InputError
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.media.codecs import VideoFormat
from isoframe.engine.media.exports import export_video
from isoframe.engine.media.video import VideoWriter, read_video_info

NUM_FRAMES, SIZE = 21, 64


def disc(time: float) -> np.ndarray:
    """A red disc that moves 2 px a frame, uint8 [64, 64, 3]."""
    y, x = np.ogrid[:SIZE, :SIZE]
    inside = np.clip(12 - np.hypot(x - 12 - 2 * time, y - 32), 0, 1)[..., None]
    return (np.array([220, 40, 30]) * inside + np.array([30, 90, 160]) * (1 - inside)).astype(np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "disc.mp4"
    with VideoWriter(
        path, VideoFormat(height=SIZE, width=SIZE, crf=8), num_frames=NUM_FRAMES, metadata={"seed": 3}
    ) as writer:
        writer.write(np.stack([disc(time) for time in range(NUM_FRAMES)]), 0)
        writer.finish()
    return path


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def error(frames: np.ndarray, times: Sequence[float] | np.ndarray) -> float:
    """Mean absolute difference from the disc at ``times``, in levels of 255."""
    return float(
        np.mean([np.abs(f.astype(int) - disc(t)).mean() for f, t in zip(frames, times, strict=True)])
    )


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_shows_every_frame_at_its_time(video: Path, tmp_path: Path, suffix: str) -> None:
    made = export_video(video, tmp_path / f"disc{suffix}")
    with Image.open(made.path) as image:
        assert image.n_frames == made.num_frames == NUM_FRAMES
        assert image.info["loop"] == 0
        frames, milliseconds = [], 0
        for index in range(NUM_FRAMES):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            milliseconds += image.info["duration"]
    assert milliseconds == pytest.approx(1000 * NUM_FRAMES / 30, abs=10)
    assert error(np.stack(frames), np.arange(NUM_FRAMES)) < 5


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_another_codec_keeps_pictures_and_metadata_and_is_labelled(
    video: Path, tmp_path: Path, codec: str
) -> None:
    made = export_video(video, tmp_path / "other.mp4", codec=codec, crf=12)
    assert made.num_frames == NUM_FRAMES
    assert made.metadata == {"seed": 3, "post_process": {"from": "disc.mp4", "codec": codec, "crf": 12}}
    assert error(decoded(made.path), np.arange(NUM_FRAMES)) < 3


def test_interpolated_frames_lie_between_their_neighbours_and_are_labelled(
    video: Path, tmp_path: Path
) -> None:
    made = export_video(video, tmp_path / "smooth.mp4", interpolate=2)
    assert made.fps == 60
    # The filter needs neighbours on both sides and leaves out the last half frames.
    assert 2 * NUM_FRAMES - 4 <= made.num_frames <= 2 * NUM_FRAMES
    assert made.metadata["post_process"]["interpolate"] == 2
    times = np.arange(0, NUM_FRAMES, 0.25)
    shown = [times[np.argmin([error(frame[None], [time]) for time in times])] for frame in decoded(made.path)]
    assert shown == pytest.approx(np.arange(made.num_frames) / 2, abs=0.25)


def test_a_refused_export_leaves_everything_as_it_was(video: Path, tmp_path: Path) -> None:
    (tmp_path / "there.gif").write_bytes(b"x")
    with pytest.raises(InputError, match="exists"):
        export_video(video, tmp_path / "there.gif")
    with pytest.raises(InputError, match=r"must end in .mp4 or .gif or .webp"):
        export_video(video, tmp_path / "a.avi")
    with pytest.raises(ConfigError, match="interpolate must be from 1 to 8, got 9"):
        export_video(video, tmp_path / "a.mp4", interpolate=9)
    with pytest.raises(ConfigError, match="did you mean 'hevc'"):
        export_video(video, tmp_path / "a.mp4", codec="hevcc")
    with pytest.raises(InputError, match="missing"):
        export_video(tmp_path / "none.mp4", tmp_path / "a.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["there.gif"]


def test_the_command_exports(video: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(build_app(), ["export", str(video), "-o", str(tmp_path / "a.webp")])
    assert result.exit_code == 0, result.output
    assert "21 frames, 30 per second, 0.7 s" in result.output.replace("\n", "")
    refused = CliRunner().invoke(build_app(), ["export", str(video), "-o", str(tmp_path / "a.webp")])
    assert refused.exit_code == 1
    assert read_video_info(video).metadata == {"seed": 3}
