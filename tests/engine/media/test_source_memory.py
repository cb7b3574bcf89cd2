"""A video that is extended is read at the size of the result: one whose frames are large takes no more memory."""

import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from isoframe.engine import InputError
from isoframe.engine.media import source_video
from isoframe.engine.media.source_video import SourceVideo
from isoframe.engine.planning.host_bytes import _frame_bytes
from isoframe.engine.planning.planned_job import PlannedJob

NUM_FRAMES = 90


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 1 MiB a frame and some kilobytes in all, each frame of another grey."""
    path = tmp_path_factory.mktemp("source") / "large.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 640, 544, "yuv420p"
        for place in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((544, 640, 3), 40 + place, np.uint8), format="rgb24")
            frame.pts = place
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("is_tail", [True, False])
def test_a_clip_takes_the_memory_of_the_result(large: Path, is_tail: bool) -> None:
    source = SourceVideo(large, 30)
    source.clip((64, 64), is_tail=is_tail)
    tracemalloc.start()
    try:
        pixels, _ = source.clip((64, 64), is_tail=is_tail)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pixels.shape == (1, 3, 77, 64, 64)
    assert pixels.is_contiguous()
    # A frame of the file is 1 MiB; all frames at the size of the result are as much.
    assert peak < 8 * 2**20
    levels = (pixels[0, 0, :, 32, 32] * 127.5 + 127.5).round()
    expected = torch.arange(NUM_FRAMES)[-77:] if is_tail else torch.cat([torch.zeros(1), torch.arange(76)])
    assert (levels - (40 + expected)).abs().max() <= 2


def test_a_video_with_fewer_frames_than_it_says_is_refused(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SourceVideo(large, 30)
    monkeypatch.setattr(source_video, "decode_frames", lambda _: iter([np.zeros((8, 8, 3), np.uint8)] * 20))
    with pytest.raises(InputError, match="says that it has 90 frames"):
        source.clip((64, 64), is_tail=True)


def test_the_plan_counts_the_frames_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SimpleNamespace(latent_window_size=1)

    def job(num_source_pixels: int) -> PlannedJob:
        made = SimpleNamespace(
            sampling=sampling, size=(64, 64), num_source_pixels=num_source_pixels, num_encoded_frames=77
        )
        return made  # type: ignore[return-value]  # what the function reads

    machine = SimpleNamespace(companion_bytes=4)
    small, large = (_frame_bytes(job(pixels), machine) for pixels in (0, 3840 * 2160))  # type: ignore[arg-type]  # likewise
    # Measured: 388 MiB.
    assert large - small > 388 * 2**20
