"""A job's finished frames play while it runs, and the job never knows."""

from pathlib import Path

import pytest
from PIL import Image

from isoframe.engine import Engine, EngineConfig, PhaseEvent, Request
from isoframe.engine.events import Event
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.jobs.playable import write_playable
from isoframe.engine.media.video import read_video_info


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu"))


def request_for(image: Path, order: str) -> Request:
    Image.new("RGB", (64, 64), (200, 60, 40)).save(image)
    return Request(
        image=image,
        prompt="a red circle moves right",
        seconds=16 / 30,
        num_steps=2,
        latent_window_size=1,
        order=order,
    )


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_what_is_finished_plays_after_every_section_and_the_video_stays_the_same(
    engine: Engine, tmp_path: Path, order: str
) -> None:
    request = request_for(tmp_path / "image.png", order)
    alone = engine.render(request, tmp_path / "alone.mp4", job_dir=tmp_path / "alone")
    lengths: list[int] = []

    def look(event: Event) -> None:
        if isinstance(event, PhaseEvent) and event.phase in ("denoise", "write"):
            lengths.append(write_playable(JobFolder.open(tmp_path / "job"), tmp_path / "part.mp4"))
            if lengths[-1]:
                part = read_video_info(tmp_path / "part.mp4")
                assert part.num_frames == lengths[-1]
                first_frame = 0 if order == "forward" else 17 - lengths[-1]
                assert part.metadata["partial"] == {"first_frame": first_frame, "num_frames": lengths[-1]}

    watched = engine.render(request, tmp_path / "watched.mp4", job_dir=tmp_path / "job", on_event=look)
    assert lengths[0] == 0
    assert lengths[-1] == 17
    # The open edge of a section is held back: the first one may have no final frame.
    assert lengths == sorted(lengths)
    assert len(set(lengths)) >= 4
    assert watched.path.read_bytes() == alone.path.read_bytes()


def test_a_section_that_cannot_be_read_is_left_out_and_not_said_to_be_made_again(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = request_for(tmp_path / "image.png", "forward")
    lengths: list[int] = []

    def look(event: Event) -> None:
        records = sorted((tmp_path / "job").glob("section_*.json"))
        if isinstance(event, PhaseEvent) and event.phase == "write" and not lengths:
            content = records[-1].read_bytes()
            records[-1].write_bytes(b"{")
            lengths.append(write_playable(JobFolder.open(tmp_path / "job"), tmp_path / "part.mp4"))
            records[-1].write_bytes(content)

    engine.render(request, tmp_path / "video.mp4", job_dir=tmp_path / "job", on_event=look)
    assert 0 < lengths[0] < 17
    assert "the file ends before the section" in caplog.text
    assert "made again" not in caplog.text


def test_a_job_without_a_finished_section_leaves_no_file(engine: Engine, tmp_path: Path) -> None:
    request = request_for(tmp_path / "image.png", "forward")
    job = engine.submit(request, job_dir=tmp_path / "job")
    job.cancel()
    list(job.events())
    engine.close()
    assert write_playable(JobFolder.open(tmp_path / "job"), tmp_path / "part.mp4") == 0
    assert not (tmp_path / "part.mp4").exists()
