"""Every record of a job with one bit changed: a service starts, and no video is silently another one."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from video_server import load

from isoframe.engine import Engine, IsoframeError, JobEvent, Request
from isoframe.engine.events import Event
from isoframe.engine.interfaces.server.videos.found_videos import find_videos
from isoframe.engine.interfaces.server.videos.notes import Asked, End, write_note
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.jobs.state import JobState

NAME = "video_0123456789abcdef01234567"


class StoppedError(Exception):
    """What the job is stopped with."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(tmp_path_factory.mktemp("cache")) as engine:
        yield engine


@pytest.fixture(scope="module")
def jobs(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a job of two sections, one of them redone and finished, as a service keeps it."""
    jobs = tmp_path_factory.mktemp("data") / "jobs"
    request = Request(
        image=Image.new("RGB", (64, 64), (200, 60, 40)), prompt="a red circle", seconds=0.2, num_steps=1,
        latent_window_size=1, seed=5, size=(32, 32),
    )  # fmt: skip
    engine.render(request, jobs / NAME / "video.mp4", job_dir=jobs / NAME)
    JobFolder.open(jobs / NAME).redo(0, seed=6)

    def stop(event: Event) -> None:
        if isinstance(event, JobEvent):
            return
        if JobFolder.open(jobs / NAME).num_encoded:
            raise StoppedError

    with pytest.raises(StoppedError):
        engine.resume(jobs / NAME, overwrite=True, on_event=stop)
    write_note(jobs / NAME, Asked(created=1.5, priority=2, has_previews=True))
    write_note(jobs / NAME, End(state=JobState.PAUSED, ended=2.5))
    return jobs


def records(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.json") if path.stat().st_size)


def flips(content: bytes) -> Iterator[bytes]:
    """The content with each of its bits changed, one at a time."""
    for place in range(len(content)):
        for bit in range(8):
            yield content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def check_starts(jobs: Path, path: Path, contents: Iterator[bytes]) -> int:
    """List the videos as a service does at its start, once for each content of ``path``; how many there were."""
    whole, number = path.read_bytes(), 0
    try:
        for content in contents:
            number += 1
            path.write_bytes(content)
            (found,) = find_videos(jobs, jobs.parent / "kept")
            assert found.status.id == NAME
            assert isinstance(found.job, JobFolder) or found.status.failure is not None
    finally:
        path.write_bytes(whole)
    return number


@pytest.mark.soak
def test_a_service_starts_with_any_bit_of_any_record_changed(jobs: Path, tell: Callable[[str], None]) -> None:
    paths = records(jobs / NAME)
    names = {path.name for path in paths}
    assert {"job.json", "redos.json", "section_0000.json", "asked.json", "end.json", "partial.json"} <= names
    number = sum(check_starts(jobs, path, flips(path.read_bytes())) for path in paths)
    tell(f"{number} changed bits in {len(paths)} records: the service started with each")
    assert number > 40_000


@pytest.mark.parametrize("number", [8, pytest.param(500, marks=pytest.mark.soak)])
def test_a_resumed_job_with_a_changed_value_is_right_or_refused(
    engine: Engine, jobs: Path, tmp_path: Path, tell: Callable[[str], None], number: int
) -> None:
    straight = shutil.copytree(jobs / NAME, tmp_path / "straight")
    expected = engine.resume(straight, tmp_path / "straight.mp4").path.read_bytes()
    outcomes: Counter[str] = Counter()
    for path in records(jobs / NAME):
        whole = path.read_bytes()
        changed = [content for content in flips(whole) if parsed(content) not in (None, parsed(whole))]
        share = max(1, number * len(whole) // sum(one.stat().st_size for one in records(jobs / NAME)))
        for content in changed[:: max(1, len(changed) // share)]:
            folder = shutil.copytree(jobs / NAME, tmp_path / "job")
            (folder / path.relative_to(jobs / NAME)).write_bytes(content)
            try:
                video = engine.resume(folder, tmp_path / "video.mp4", overwrite=True)
                assert video.path.read_bytes() == expected, content
                outcomes["right"] += 1
            except IsoframeError:
                outcomes["refused"] += 1
            shutil.rmtree(folder)
    tell(f"{outcomes.total()} resumed jobs with a changed value: {dict(outcomes)}, 0 silently wrong")
    assert outcomes.total() >= number
