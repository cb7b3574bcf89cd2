"""Videos as a service, without a protocol: what survives a restart, and what does not come back."""

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from job_gate import Gate
from PIL import Image
from video_server import TIMEOUT, KeptWorkers, load

from isoframe.engine import ConfigError, Engine, InputError, NumericalError, QueueFullError, Request
from isoframe.engine.interfaces.server.videos.errors import FieldError, NotFinishedError, UnknownVideoError
from isoframe.engine.interfaces.server.videos.limits import Limits
from isoframe.engine.interfaces.server.videos.notes import End, write_note
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.interfaces.server.videos.workers import LocalWorkers
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.jobs.seals import seal, unseal
from isoframe.engine.jobs.state import JobState
from isoframe.engine.sampling.denoiser import Denoiser


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def engine(cache: Path) -> Iterator[Engine]:
    with load(cache) as engine:
        yield engine


@pytest.fixture
def request_of() -> Callable[..., Request]:
    """A job of 3 short sections: 13 frames."""

    def make(**changes: Any) -> Request:
        fields: dict[str, Any] = {
            "image": Image.new("RGB", (64, 64), (200, 60, 40)), "prompt": "a red circle moves right", "seconds": 0.4,
            "num_steps": 2, "latent_window_size": 1, "seed": 5,
        }  # fmt: skip
        return Request(**fields | changes)

    return make


def open_service(engine: Engine, folder: Path, **options: Any) -> VideoService:
    return VideoService(KeptWorkers(engine), folder, **options)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


def test_what_a_stopped_service_left_is_finished_by_the_next_one_bit_for_bit(
    cache: Path, engine: Engine, request_of: Callable[..., Request], tmp_path: Path, gate: Gate
) -> None:
    with VideoService(LocalWorkers(load(cache)), tmp_path / "data") as service:
        names = [service.create(request_of(seed=seed), priority=seed).id for seed in (5, 6, 7)]
        service.cancel(names[1])
        gate.wait()
        threading.Timer(0.05, gate.open).start()
    with open_service(engine, tmp_path / "data") as service:
        found = [service.wait(name, TIMEOUT) for name in names]
        assert [video.state for video in found] == ["done", "cancelled", "done"]
        assert [video.id for video in service.page(is_oldest_first=True)] == names
        paths = [service.video_path(name) for name in (names[0], names[2])]
        straight = engine.render(request_of(seed=5), tmp_path / "straight.mp4").path
        assert paths[0].read_bytes() == straight.read_bytes()
        assert sorted(path.name for path in paths[0].parent.glob("*.mp4")) == ["video.mp4"]


def test_a_video_that_was_taken_up_again_is_resumed_after_a_restart(
    engine: Engine, cache: Path, request_of: Callable[..., Request], tmp_path: Path, gate: Gate
) -> None:
    with VideoService(LocalWorkers(load(cache)), tmp_path) as service:
        first, paused = (service.create(request_of(seed=seed)).id for seed in range(2))
        gate.wait()
        assert service.pause(paused).state == "paused"
        assert service.resume(paused).state == "queued"
        threading.Timer(0.05, gate.open).start()
    with open_service(engine, tmp_path) as service:
        assert [service.wait(name, TIMEOUT).state for name in (first, paused)] == ["done", "done"]


def test_a_folder_that_moved_has_all_its_videos(
    engine: Engine, cache: Path, request_of: Callable[..., Request], tmp_path: Path, gate: Gate
) -> None:
    gate.open()
    with open_service(engine, tmp_path / "data") as service:
        first = service.wait(service.create(request_of()).id, TIMEOUT)
        longer = service.create(
            request_of(image=None, video=service.keep(service.video_path(first.id)), order="auto")
        )
        assert service.wait(longer.id, TIMEOUT).state == "done"
        content = service.video_path(longer.id).read_bytes()
        paused = service.create(request_of(seed=9)).id
        service.pause(paused)
        assert service.wait(paused, TIMEOUT).state == "paused"
    (tmp_path / "data").rename(tmp_path / "moved")
    with open_service(engine, tmp_path / "moved") as service:
        assert service.video_path(longer.id).read_bytes() == content
        again = service.reproduce(longer.id)
        service.resume(paused)
        assert [service.wait(name, TIMEOUT).state for name in (again.id, paused)] == ["done", "done"]
        assert service.video_path(again.id).read_bytes() == content
    assert not (tmp_path / "data").exists()


def test_the_videos_are_found_by_their_folders_alone(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    with open_service(engine, tmp_path) as service:
        names = [service.create(request_of(seed=seed)).id for seed in range(3)]
        before = [service.wait(name, TIMEOUT) for name in names]
    with open_service(engine, tmp_path) as service:
        after = service.page(is_oldest_first=True)
        assert [replace(video, ended=None) for video in after] == [
            replace(video, ended=None, seconds_left=None) for video in before
        ]
        assert service.counts() == {
            "queued": 0,
            "running": 0,
            "paused": 0,
            "done": 3,
            "failed": 0,
            "cancelled": 0,
        }


def test_what_was_being_made_or_deleted_at_a_crash_is_removed_and_foreign_folders_are_not(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    with open_service(engine, tmp_path) as service:
        kept, deleted = (service.create(request_of(seed=seed)).id for seed in range(2))
        service.wait(deleted, TIMEOUT)
    jobs = tmp_path / "jobs"
    write_note(jobs / deleted, End(state=JobState.DELETED, ended=0.0))
    half_made = jobs / "video_0123456789abcdef01234567"
    half_made.mkdir()
    (half_made / "image.png").write_bytes(b"")
    foreign = jobs / "mine"
    shutil.copytree(jobs / kept, foreign)
    damaged = jobs / "video_ffffffffffffffffffffffff"
    shutil.copytree(jobs / kept, damaged)
    (damaged / "job.json").write_text("{")
    with open_service(engine, tmp_path) as service:
        assert {video.id for video in service.page()} == {kept, damaged.name}
        assert {path.name for path in jobs.iterdir()} == {kept, foreign.name, damaged.name}


def test_more_videos_than_may_wait_are_resumed_and_new_ones_are_refused(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, gate: Gate
) -> None:
    closing = load(tmp_path / "cache")
    with VideoService(LocalWorkers(closing), tmp_path / "data", max_queued=3) as service:
        names = [service.create(request_of(seed=0)).id]
        gate.wait()
        names += [service.create(request_of(seed=seed)).id for seed in (1, 2, 3)]
        with pytest.raises(QueueFullError, match="3 videos wait, and no more than 3 may"):
            service.create(request_of())
        assert len(list((tmp_path / "data" / "jobs").iterdir())) == 4
        threading.Timer(0.05, gate.open).start()
    with open_service(engine, tmp_path / "data", max_queued=1) as service:
        assert [service.wait(name, TIMEOUT).state for name in names] == ["done"] * 4


def test_a_failure_is_told_kept_and_not_tried_again(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise NumericalError("latents became NaN", section=0, step=1, backend="sdpa")

    with open_service(engine, tmp_path) as service:
        with monkeypatch.context() as patch:
            patch.setattr(Denoiser, "_denoise", fail)
            name = service.create(request_of()).id
            video = service.wait(name, TIMEOUT)
        assert (video.state, video.failure and video.failure.error) == ("failed", "NumericalError")
        with pytest.raises(NotFinishedError, match="the video is failed"):
            service.video_path(name)
    with open_service(engine, tmp_path) as service:
        assert service.get(name) == video


def test_a_video_of_another_model_fails_at_the_restart_and_waits_for_its_own(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, gate: Gate, cache: Path
) -> None:
    with VideoService(LocalWorkers(load(cache)), tmp_path) as service:
        name = service.create(request_of()).id
        gate.wait()
        threading.Timer(0.05, gate.open).start()
    record = tmp_path / "jobs" / name / "job.json"
    text = record.read_text()
    values, _ = unseal(text.replace(engine.model_hash, "0" * len(engine.model_hash)))
    record.write_text(seal(values))
    with open_service(engine, tmp_path) as service:
        video = service.get(name)
        assert video.state == "failed"
        assert "model_hash" in (video.failure.message if video.failure else "")
    record.write_text(text)
    with open_service(engine, tmp_path) as service:
        assert service.wait(name, TIMEOUT).state == "done"


def test_a_folder_belongs_to_one_service(engine: Engine, tmp_path: Path) -> None:
    with open_service(engine, tmp_path), pytest.raises(InputError, match="in use by another service"):
        open_service(engine, tmp_path)
    open_service(engine, tmp_path).close()


def test_a_refused_request_leaves_no_folder(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    with open_service(engine, tmp_path, limits=Limits(seconds=1)) as service:
        with pytest.raises(FieldError, match="seconds must be at most 1, got 2"):
            service.create(request_of(seconds=2))
        with pytest.raises(InputError):
            service.create(request_of(image=tmp_path / "missing.png"))
        assert list((tmp_path / "jobs").iterdir()) == []
        assert service.page() == []


def test_events_are_replayed_and_keys_of_another_run_mean_all(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    with open_service(engine, tmp_path) as service:
        name = service.create(request_of()).id
        service.wait(name, TIMEOUT)
        entries, is_over = service.events(name)
        assert is_over
        assert [entry.index for _, entry in entries] == list(range(len(entries)))
        key = entries[3][0]
        assert service.events(name, key) == (entries[4:], True)
        run = key.removesuffix("3")
        for text in ("0a-3", "", "-", "a", "a-", "-1", "a-b", "a b-1", "a-1" * 20, "ä-1", run, f"{run}²"):
            assert service.events(name, text) == (entries, True)
        # Of many videos the events of the last ones are kept.
        others = [service.create(request_of(seconds=0.1, num_steps=1)).id for _ in range(9)]
        assert {service.wait(other, TIMEOUT).state for other in others} == {"done"}
        assert service.events(name) == ([], True)


def test_folders_and_files_that_somebody_else_removed_are_told(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    with open_service(engine, tmp_path) as service:
        names = [service.create(request_of(seed=seed)).id for seed in range(3)]
        assert {service.wait(name, TIMEOUT).state for name in names} == {"done"}
        service.video_path(names[0]).unlink()
        with pytest.raises(NotFinishedError, match="somebody removed its file"):
            service.video_path(names[0])
        JobFolder.open(tmp_path / "jobs" / names[1]).delete()
        shutil.rmtree(tmp_path / "jobs" / names[2])
        for name in names[1:]:
            with pytest.raises(UnknownVideoError, match="its folder was removed"):
                service.video_path(name)
            with pytest.raises(UnknownVideoError):
                service.delete(name)
        assert [video.id for video in service.page()] == names[:1]


def test_unknown_videos_are_told(engine: Engine, tmp_path: Path) -> None:
    with open_service(engine, tmp_path) as service:
        for method in (
            service.get,
            service.cancel,
            service.delete,
            service.events,
            service.wait,
            service.page,
        ):
            with pytest.raises(UnknownVideoError):
                method("video_000000000000000000000000")


def test_deleting_and_cancelling_from_many_threads_ends_every_video_once(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    errors: list[BaseException] = []

    def bother(name: str, number: int) -> None:
        try:
            (service.cancel, service.delete, service.get)[number % 3](name)
        except UnknownVideoError:
            pass
        except BaseException as error:
            errors.append(error)

    with open_service(engine, tmp_path, max_queued=99) as service:
        names = [service.create(request_of(seconds=0.1, num_steps=1)).id for _ in range(12)]
        threads = [
            threading.Thread(target=bother, args=(name, number + place))
            for place, name in enumerate(names)
            for number in range(3)
            if place % 2
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        last = service.create(request_of(seconds=0.1, num_steps=1)).id
        assert service.wait(last, TIMEOUT).state == "done"
        assert errors == []
        left = {video.id: video.state for video in service.page(limit=99)}
        assert left == {name: "done" for name in (*names[::2], last)}
        assert {path.name for path in (tmp_path / "jobs").iterdir()} == set(left)
        assert service.counts() == {
            "queued": 0,
            "running": 0,
            "paused": 0,
            "done": 7,
            "failed": 0,
            "cancelled": 0,
        }


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="num_steps must be positive, got 0"):
        Limits(num_steps=0)
    with pytest.raises(ConfigError, match="seconds must be positive, got nan"):
        Limits(seconds=float("nan"))
