"""Videos that are paused, taken up again, made again in part, and moved in the queue."""

import asyncio
import dataclasses
import errno
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.encoders import jsonable_encoder
from PIL import Image
from safetensors.torch import load_file
from video_server import TIMEOUT, KeptWorkers, load

from isoframe.engine import ConfigError, Engine, InputError, JobCancelledError, Request
from isoframe.engine.interfaces.server.http.event_stream import event_stream
from isoframe.engine.interfaces.server.videos.errors import UnknownVideoError
from isoframe.engine.interfaces.server.videos.notes import forget_end
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.interfaces.server.videos.status import VideoStatus
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.jobs.job import Job
from isoframe.engine.media.video import read_video_info
from isoframe.engine.sampling.denoiser import Denoiser

NUM_SECTIONS = 4


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(tmp_path_factory.mktemp("cache")) as engine:
        yield engine


@pytest.fixture
def service(engine: Engine, tmp_path: Path) -> Iterator[VideoService]:
    with VideoService(KeptWorkers(engine), tmp_path / "data", max_queued=4) as service:
        yield service


def request_of(num_sections: int = NUM_SECTIONS, **changes: object) -> Request:
    """A job of short sections."""
    request = Request(
        image=Image.new("RGB", (64, 64), (200, 60, 40)), prompt="a red circle moves right",
        seconds=4 * num_sections / 30, num_steps=2, latent_window_size=1, order="forward",
    )  # fmt: skip
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]  # fields of a request


def create_running(service: VideoService) -> VideoStatus:
    """A long video whose first section is finished."""
    video = service.create(request_of(200))
    while service.get(video.id).num_finished_sections == 0:
        threading.Event().wait(0.01)
    return service.get(video.id)


def content(service: VideoService, name: str) -> bytes:
    return service.video_path(name).read_bytes()


def test_a_paused_video_goes_on_where_it_was_and_becomes_the_same_file(service: VideoService) -> None:
    plain = service.create(request_of(12))
    paused = service.create(request_of(12))
    service.wait(plain.id)
    while service.get(paused.id).num_finished_sections == 0:
        threading.Event().wait(0.005)
    service.pause(paused.id)
    stopped = service.wait(paused.id)
    assert stopped.state == "paused"
    assert 0 < stopped.num_finished_sections < 12
    assert service.resume(paused.id).state in ("queued", "running")
    assert service.wait(paused.id).state == "done"
    assert content(service, paused.id) == content(service, plain.id)


def test_a_video_is_taken_up_only_when_its_old_end_is_kept(
    service: VideoService, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, opened = threading.Event(), threading.Event()
    on_end = VideoService._on_end

    def on_end_late(*args: Any) -> None:
        entered.set()
        assert opened.wait(TIMEOUT)
        on_end(*args)

    name = create_running(service).id
    monkeypatch.setattr(VideoService, "_on_end", on_end_late)
    service.pause(name)
    assert entered.wait(TIMEOUT)
    threading.Timer(0.2, opened.set).start()
    assert service.resume(name).state in ("queued", "running")
    assert opened.is_set()
    assert service.get(name).state in ("queued", "running")
    service.cancel(name)
    assert service.wait(name, TIMEOUT).state == "cancelled"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("secret /path"), "the server failed (RuntimeError); its log says more"),
        (OSError(5, "secret", "/path"), "the server failed (OSError); its log says more"),
        (InputError("JOBS/a.png cannot be read"), "a.png cannot be read"),
    ],
)
def test_the_text_of_an_unexpected_error_and_folders_of_the_server_are_in_no_answer(
    service: VideoService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
) -> None:
    jobs = tmp_path / "data" / "jobs"
    failing = type(error)(*(str(text).replace("JOBS", str(jobs)) for text in error.args))

    def fail(*_: object) -> None:
        raise failing

    async def read(name: str) -> list[tuple[str | None, str]]:
        return [
            (event.event, json.dumps(jsonable_encoder(event.data)))
            async for event in event_stream(service, name, None)
        ]

    monkeypatch.setattr(Denoiser, "_denoise", fail)
    name = service.create(request_of(1)).id
    failure = service.wait(name, TIMEOUT).failure
    assert failure is not None
    assert (failure.error, failure.message) == (type(error).__name__, told)
    events = asyncio.run(read(name))
    assert [(kind, json.dumps(told) in text) for kind, text in events[-2:]] == [
        ("failure", True),
        ("video", True),
    ]
    assert not any("secret" in text or str(tmp_path) in text for _, text in events)


def test_a_video_that_cannot_be_taken_up_at_the_start_tells_no_folder(
    engine: Engine, service: VideoService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resume(_: object, folder: JobFolder, asked: object) -> None:
        raise InputError(f"{folder.path / 'image.png'} cannot be read")

    name = create_running(service).id
    service.pause(name)
    service.wait(name, TIMEOUT)
    shutil.copytree(tmp_path / "data" / "jobs" / name, tmp_path / "other" / "jobs" / name)
    forget_end(tmp_path / "other" / "jobs" / name)
    monkeypatch.setattr(KeptWorkers, "resume", resume)
    with VideoService(KeptWorkers(engine), tmp_path / "other") as other:
        failure = other.get(name).failure
    assert failure is not None
    assert failure.message == f"{name}/image.png cannot be read"


@pytest.mark.parametrize("step", ["write_note", "describe"])
def test_a_video_that_could_not_be_kept_is_not_made(
    service: VideoService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    jobs, submit = [], KeptWorkers.submit

    def submit_seen(*args: Any) -> Job:
        jobs.append(submit(*args))
        return jobs[-1]

    running = create_running(service).id
    monkeypatch.setattr(KeptWorkers, "submit", submit_seen)
    with monkeypatch.context() as patch:
        patch.setattr(f"isoframe.engine.interfaces.server.videos.service.{step}", fail)
        with pytest.raises(OSError, match="No space left"):
            service.create(request_of(1))
    assert [job.state for job in jobs] == ["cancelled"]
    assert [path.name for path in (tmp_path / "data" / "jobs").iterdir()] == [running]
    service.cancel(running)
    service.wait(running)


def fail_to_write(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_videos_are_cancelled_and_deleted_though_the_disk_is_full(
    service: VideoService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = service.wait(service.create(request_of(1)).id, TIMEOUT)
    running = create_running(service).id
    queued = [service.create(request_of(1)).id for _ in range(2)]
    monkeypatch.setattr("isoframe.engine.interfaces.server.videos.notes.write_durably", fail_to_write)
    service.delete(done.id)
    service.delete(queued[0])
    service.cancel(queued[1])
    job, folder = service._videos[running].job, service.folder(running).path
    assert job is not None
    service.delete(running)
    with pytest.raises(JobCancelledError):
        job.result(TIMEOUT)
    while folder.exists():
        threading.Event().wait(0.01)
    assert [video.id for video in service.page()] == [queued[1]]
    assert service.get(queued[1]).state == "cancelled"
    assert [path.name for path in (tmp_path / "data" / "jobs").iterdir()] == [queued[1]]


def test_a_service_that_cannot_be_opened_leaves_its_folder_to_another_one(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", fail_to_write)
        with pytest.raises(InputError, match="jobs cannot be read"):
            VideoService(KeptWorkers(engine), tmp_path)
    with VideoService(KeptWorkers(engine), tmp_path) as service:
        assert service.page() == []


def test_a_restart_leaves_paused_videos_paused_until_they_are_taken_up(
    engine: Engine, tmp_path: Path
) -> None:
    with VideoService(KeptWorkers(engine), tmp_path) as service:
        name = create_running(service).id
        service.pause(name)
        service.wait(name)
    with VideoService(KeptWorkers(engine), tmp_path) as service:
        assert service.get(name).state == "paused"
        assert service.counts()["paused"] == 1
        service.resume(name)
        assert service.cancel(name).id == name
        assert service.wait(name).state == "cancelled"


def test_a_paused_video_can_be_cancelled_for_good(service: VideoService) -> None:
    name = create_running(service).id
    service.pause(name)
    service.wait(name)
    assert service.cancel(name).state == "cancelled"


def test_a_redo_is_a_new_video_with_the_first_sections_of_the_old_one(service: VideoService) -> None:
    old = service.create(request_of())
    service.wait(old.id)
    before = content(service, old.id)
    new = service.redo(old.id, 2, seed=7)
    assert service.wait(new.id).state == "done"
    assert content(service, old.id) == before
    assert read_video_info(service.video_path(new.id)).metadata["redos"] == [
        {"section": 2, "seed": 7, "prompt": None}
    ]
    names = [f"section_{i:04d}.safetensors" for i in range(NUM_SECTIONS)]
    old_latents, new_latents = (
        [load_file(service.folder(video.id).path / name)["latents"] for name in names] for video in (old, new)
    )
    assert [torch.equal(*pair) for pair in zip(old_latents, new_latents, strict=True)] == [
        True,
        True,
        False,
        False,
    ]


def test_a_video_that_is_repeated_becomes_the_same_file(service: VideoService) -> None:
    first = service.create(request_of())
    service.wait(first.id)
    second = service.reproduce(first.id)
    assert second.num_finished_sections < second.num_sections
    assert service.wait(second.id).state == "done"
    assert service.video_path(second.id) != service.video_path(first.id)
    assert content(service, second.id) == content(service, first.id)


def test_a_redo_that_is_refused_leaves_nothing(service: VideoService) -> None:
    old = service.create(request_of())
    service.wait(old.id)
    with pytest.raises(ConfigError, match="section must be from 1 to 4, got 9"):
        service.redo(old.id, 8, seed=7)
    with pytest.raises(UnknownVideoError):
        service.redo("video_0", 0, seed=7)
    running = create_running(service).id
    with pytest.raises(InputError, match="in use by another process"):
        service.redo(running, 0, seed=7)
    assert len(service.page()) == 2
    service.cancel(running)
    service.wait(running)


def test_a_video_that_is_moved_to_the_front_is_made_first(service: VideoService) -> None:
    running = create_running(service).id
    names = [service.create(request_of(1, seed=seed)).id for seed in range(3)]
    service.prioritize(names[2], 1)
    assert [status.id for status, _ in service.queue()] == [running, names[2], names[0], names[1]]
    service.cancel(running)
    ends = [service.wait(name).ended for name in names]
    assert None not in ends
    assert sorted(names, key=lambda name: service.get(name).ended or 0) == [names[2], names[0], names[1]]


def test_a_kept_file_goes_at_the_first_start_at_which_no_video_needs_it(
    engine: Engine, tmp_path: Path
) -> None:
    with VideoService(KeptWorkers(engine), tmp_path / "data") as service:
        first = service.create(request_of(2))
        service.wait(first.id)
        kept, useless = (service.keep(service.video_path(first.id)) for _ in range(2))
        longer = service.create(request_of(1, image=None, video=kept))
        service.wait(longer.id)
    with VideoService(KeptWorkers(engine), tmp_path / "data") as service:
        assert (kept.exists(), useless.exists()) == (True, False)
        service.delete(longer.id)
    with VideoService(KeptWorkers(engine), tmp_path / "data"):
        assert not kept.exists()
