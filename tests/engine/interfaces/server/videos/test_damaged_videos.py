"""A service starts with every kind of damage in any job folder, and tells it of that video alone."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from video_server import TIMEOUT, KeptWorkers, load

from isoframe.engine import Engine, InputError, IsoframeError, QueueFullError, Request
from isoframe.engine.files import write_durably
from isoframe.engine.interfaces.server.http.schemas import VideoObject
from isoframe.engine.interfaces.server.videos.errors import NotFinishedError, UnknownVideoError
from isoframe.engine.interfaces.server.videos.notes import Asked, End, write_note
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.jobs.folder import JobFolder, list_jobs
from isoframe.engine.jobs.job import Job
from isoframe.engine.jobs.state import JobState


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(tmp_path_factory.mktemp("cache")) as engine:
        yield engine


@pytest.fixture(scope="module")
def made(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a service with one video that is paused, of two sections."""
    data = tmp_path_factory.mktemp("data")
    with VideoService(KeptWorkers(engine), data) as service:
        request = Request(
            image=Image.new("RGB", (64, 64), (200, 60, 40)),
            prompt="a red circle",
            seconds=0.2,
            num_steps=1,
            latent_window_size=1,
        )
        name = service.create(request).id
        service.wait(name, TIMEOUT)
        folder = service.folder(name)
        folder.redo(1, seed=8)
    write_note(folder.path, End(state=JobState.PAUSED, ended=1.0))
    return data


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 8
    path.write_bytes(content)


def become_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def writing(content: str) -> Callable[[Path], None]:
    return lambda path: (path.write_text(content), None)[1]


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "empty": writing(""),
    "flipped": flip,
    "folder": become_folder,
    "missing": Path.unlink,
    "list": writing("[1, 2]"),
    "deep": writing('{"a": ' * 900 + "1" + "}" * 900),
    "deeper": writing("[" * 100_000),
    "huge": writing('{"created": 1e308, "ended": 1e308, "state": "paused", "redos": [{"section": 1e308}]}'),
    "infinite": writing('{"created": 1e999, "ended": NaN, "state": "paused"}'),
    "running": writing('{"created": 1, "ended": 1, "state": "running"}'),
    "bytes": lambda path: (path.write_bytes(b"\xff\xfe\x00"), None)[1],
    "surrogate": writing('{"state": "failed", "ended": 1, "failure": {"error": "\\ud800", "message": "x"}}'),
}


class IdleWorkers(KeptWorkers):
    """Read a job and then refuse it: what comes after that are tests of their own."""

    def resume(self, folder: JobFolder, asked: Asked) -> Job:
        JobFolder.open(folder.path)
        raise QueueFullError("not now")


FILES = (
    "job.json",
    "redos.json",
    "section_0000.json",
    "section_0000.safetensors",
    "segments.bin",
    "image.png",
)


def use(service: VideoService, name: str) -> None:
    """Everything that can be done with a video: it works, or is refused in a sentence."""
    VideoObject.of(service.get(name))
    service.page()
    service.queue()
    calls: list[Callable[[], object]] = [
        lambda: service.video_path(name),
        lambda: service.preview_path(name, 0),
        lambda: service.folder(name),
        lambda: service.redo(name, 0, seed=3),
        lambda: service.reproduce(name),
        lambda: service.events(name),
        lambda: service.prioritize(name, 2),
        lambda: service.resume(name),
        lambda: service.pause(name),
        lambda: service.cancel(name),
    ]
    for call in calls:
        with contextlib.suppress(IsoframeError):
            call()


@pytest.mark.parametrize("file", [*FILES, "service/asked.json", "service/end.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_service_starts_with_a_damaged_file_in_one_folder(
    engine: Engine, made: Path, tmp_path: Path, file: str, damage: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(made, data)
    (folder,) = (data / "jobs").iterdir()
    name, other = folder.name, "video_0123456789abcdef01234567"
    shutil.copytree(folder, folder.with_name(other))
    DAMAGES[damage](folder / file)
    with VideoService(IdleWorkers(engine), data) as service:
        assert {status.id for status in service.page()} == {name, other}
        assert service.get(other).state is JobState.PAUSED
        status = service.get(name)
        if file in ("job.json", "redos.json") and (file, damage) != ("redos.json", "missing"):
            assert status.state is JobState.FAILED
            assert status.failure is not None
            assert file in status.failure.message
        if file == "service/end.json" and damage != "missing":
            assert status.state is JobState.FAILED
        use(service, name)
        for video in service.page():
            service.delete(video.id)
    assert list((data / "jobs").iterdir()) == []


def test_what_lies_where_a_video_should_be_is_listed_and_deleted(
    engine: Engine, made: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(made, data)
    file, link = (data / "jobs" / f"video_{digit * 24}" for digit in "ab")
    file.write_text("no folder")
    link.symlink_to(data / "nowhere")
    with VideoService(IdleWorkers(engine), data) as service:
        assert len(service.page()) == 3
        for path in (file, link):
            assert service.get(path.name).state is JobState.FAILED
            with pytest.raises(NotFinishedError):
                service.video_path(path.name)
            service.delete(path.name)
            with pytest.raises(UnknownVideoError):
                service.get(path.name)
            assert not os.path.lexists(path)


def test_a_folder_that_may_not_be_read_is_listed_with_its_reason(
    engine: Engine, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(made, data)
    (folder,) = (data / "jobs").iterdir()
    read = Path.read_text

    def refuse(path: Path, *arguments: str, **options: str) -> str:
        if path.parent == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    with VideoService(IdleWorkers(engine), data) as service:
        failure = service.get(folder.name).failure
        assert failure is not None
        assert "Permission denied" in failure.message


def test_a_video_that_cannot_be_removed_stays_in_the_list(
    engine: Engine, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(made, data)
    (folder,) = (data / "jobs").iterdir()

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with VideoService(IdleWorkers(engine), data) as service:
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", refuse)
            with pytest.raises(InputError, match="Read-only"):
                service.delete(folder.name)
        assert service.get(folder.name).state is JobState.PAUSED
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", refuse)
            service.delete(folder.name)
        assert service.page() == []
        assert [path.suffix for path in (data / "jobs").iterdir()] == [".removed"]
    with VideoService(IdleWorkers(engine), data) as service:
        assert service.page() == []
        assert list((data / "jobs").iterdir()) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_job_is_listed_with_its_reason(made: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(made, tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "jobs").iterdir()
    shutil.copytree(folder, folder.with_name("whole"))
    DAMAGES[damage](folder / "job.json")
    found = list(list_jobs(tmp_path / "cache"))
    assert [type(job) for job in found] == [InputError, JobFolder]
    assert folder.name in str(found[0])


@pytest.mark.parametrize("step", ["the end of the job", "its note", "both"])
def test_a_video_whose_end_cannot_be_written_failed_for_that_reason_and_goes_on(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        if path.name in ("done.json", "end.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_durably(path, content)

    request = Request(
        image=Image.new("RGB", (64, 64), (200, 60, 40)),
        prompt="a",
        seconds=0.1,
        num_steps=1,
        latent_window_size=1,
    )
    with VideoService(KeptWorkers(engine), tmp_path) as service:
        with monkeypatch.context() as patch:
            if step != "its note":
                patch.setattr("isoframe.engine.jobs.run.write_durably", refuse)
            if step != "the end of the job":
                patch.setattr("isoframe.engine.interfaces.server.videos.notes.write_durably", refuse)
            name = service.create(request).id
            status = service.wait(name, TIMEOUT)
            assert (status.state is JobState.FAILED) == (step != "its note")
            if status.failure is not None:
                assert "No space left" in status.failure.message
            other = service.create(request).id
            service.wait(other, TIMEOUT)
            service.delete(other)
        assert service.resume(name).id == name
        assert service.wait(name, TIMEOUT).state is JobState.DONE
    with VideoService(KeptWorkers(engine), tmp_path) as service:
        assert [(status.id, status.state) for status in service.page()] == [(name, JobState.DONE)]
