"""Videos that actors of Ray make, one of which is killed."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from video_server import load, serving, small_limits

from isoframe.engine import ConfigError, Engine, EngineConfig, InputError, Request, StartedEvent
from isoframe.engine.events import Event, JobEvent, StepEvent
from isoframe.engine.interfaces.server.videos.engine_source import EngineSource
from isoframe.engine.interfaces.server.videos.local_cluster import keep_clusters_local
from isoframe.engine.interfaces.server.videos.notes import Asked
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.jobs.job import Job

# Ray is an extra, and a cluster takes ten seconds to start.
pytestmark = [pytest.mark.soak, pytest.mark.slow]
TIMEOUT = 120
ROOT = Path(__file__).resolve().parents[5]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(tmp_path_factory.mktemp("cache")) as engine:
        yield engine


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two actors on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Its processes find the packages as this one does.
        patch.setenv("PYTHONPATH", str(ROOT / ".src"))
        keep_clusters_local()
        from isoframe.engine.interfaces.server.videos.ray_workers import RayWorkers

        config = EngineConfig(device="cpu", cache_dir=tmp_path_factory.mktemp("cache"))
        workers = RayWorkers("local", EngineSource(model="demo", config=config), num_actors=2)
        yield workers
        workers.close()


@pytest.fixture
def service(workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VideoService]:
    monkeypatch.setattr(workers, "close", lambda: None)
    with VideoService(workers, tmp_path / "data", limits=small_limits()) as service:
        yield service


def assert_is_plain(message: str) -> None:
    """The text of an error as this process would have it: no traceback, no word of where it was raised."""
    assert "Traceback" not in message
    assert "\n" not in message
    assert "pid=" not in message
    assert "ray::" not in message


def request_of(num_sections: int, **changes: Any) -> Request:
    return Request(
        **{
            "image": Image.new("RGB", (64, 64), (200, 60, 40)), "prompt": "a red circle moves right",
            "seconds": 4 * num_sections / 30, "num_steps": 8, "latent_window_size": 1, **changes,
        }
    )  # fmt: skip


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def process_of(workers: Any, name: str) -> int:
    """Id of the process of the actor that works on a video."""
    import ray

    def look(actor: Any) -> tuple[int, list[str]]:
        return os.getpid(), list(actor._jobs)

    found = [ray.get(actor.__ray_call__.remote(look)) for actor in workers._actors]
    return next(pid for pid, folders in found if any(name in folder for folder in folders))


def test_a_cluster_of_this_process_listens_on_loopback_alone(workers: Any) -> None:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 4
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("resources", "device", "asked", "num_actors", "needs"),
    [
        ({"GPU": 3.0, "CPU": 8.0}, "auto", None, 3, {"num_gpus": 1}),
        ({"GPU": 3.0, "CPU": 8.0}, "cuda", 2, 2, {"num_gpus": 1}),
        ({"GPU": 3.0, "CPU": 8.0}, "cpu", 8, 8, {"num_cpus": 1}),
        ({"CPU": 2.0}, "auto", None, 1, {"num_cpus": 1}),
    ],
)
def test_every_actor_has_a_gpu_or_a_core(
    resources: dict[str, float], device: str, asked: int | None, num_actors: int, needs: dict[str, int]
) -> None:
    from isoframe.engine.interfaces.server.videos.ray_workers import share_cluster

    assert share_cluster(resources, device, asked) == (num_actors, needs)


@pytest.mark.parametrize(
    ("resources", "device", "message"),
    [
        ({"GPU": 3.0, "CPU": 8.0}, "auto", "at most 3, the number of GPUs of the Ray cluster, got 9"),
        ({"GPU": 3.0, "CPU": 8.0}, "cpu", "at most 8, the number of CPU cores of the Ray cluster, got 9"),
    ],
)
def test_more_actors_than_the_cluster_has_room_for_are_refused(
    resources: dict[str, float], device: str, message: str
) -> None:
    from isoframe.engine.interfaces.server.videos.ray_workers import share_cluster

    with pytest.raises(ConfigError, match=message):
        share_cluster(resources, device, 9)


def test_two_videos_are_made_at_the_same_time_and_are_those_of_the_engine(
    service: VideoService, engine: Engine, tmp_path: Path
) -> None:
    assert (service.card.name, service.card.device) == ("demo", "cpu")
    names = [service.create(request_of(8, seed=seed)).id for seed in range(2)]
    wait_until(lambda: service.counts()["running"] == 2)
    assert [service.wait(name, TIMEOUT).state for name in names] == ["done", "done"]
    for seed, name in enumerate(names):
        straight = engine.render(request_of(8, seed=seed), tmp_path / f"{seed}.mp4").path
        assert service.video_path(name).read_bytes() == straight.read_bytes()


def test_the_video_of_a_killed_actor_goes_on_in_another_one_from_its_last_section(
    service: VideoService, workers: Any, engine: Engine, tmp_path: Path
) -> None:
    request = request_of(16)
    name = service.create(request).id
    wait_until(lambda: service.get(name).num_finished_sections >= 4)
    os.kill(process_of(workers, name), signal.SIGKILL)
    assert service.wait(name, TIMEOUT).state == "done"
    straight = engine.render(request, tmp_path / "straight.mp4").path
    assert service.video_path(name).read_bytes() == straight.read_bytes()
    events = [entry.event for _, entry in service.events(name)[0]]
    assert len([event for event in events if isinstance(event, StartedEvent)]) == 1
    first, again = (event.num_finished_sections for event in events if isinstance(event, JobEvent))
    assert first == 0
    assert again >= 3
    # The lost one was replaced.
    names = [service.create(request_of(8, seed=seed)).id for seed in range(2)]
    wait_until(lambda: service.counts()["running"] == 2)
    assert [service.wait(name, TIMEOUT).state for name in names] == ["done", "done"]


def test_a_video_is_cancelled_in_its_actor_and_keeps_what_is_finished(service: VideoService) -> None:
    name = service.create(request_of(29, num_steps=50)).id
    wait_until(lambda: service.get(name).num_finished_sections >= 1)
    service.cancel(name)
    video = service.wait(name, TIMEOUT)
    assert video.state == "cancelled"
    assert 1 <= video.num_finished_sections < 29
    assert list(service.folder(name).path.glob("*.partial.mp4"))


def test_a_video_whose_events_cannot_be_kept_fails_when_its_actor_is_through_with_it(
    service: VideoService, workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def fail(_: Job, event: Event) -> None:
        if isinstance(event, StepEvent):
            raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Job, "_on_event", fail)
        video = service.wait(service.create(request_of(29, num_steps=50)).id, TIMEOUT)
    assert video.state == "failed"
    assert video.num_finished_sections < 29
    assert video.failure is not None
    assert video.failure.error == "OSError"
    at_work = [actor.__ray_call__.remote(lambda actor: list(actor._jobs)) for actor in workers._actors]
    assert ray.get(at_work) == [[], []]
    assert service.wait(service.create(request_of(1)).id, TIMEOUT).state == "done"


def test_refusals_and_failures_of_an_actor_are_told(service: VideoService, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        service.create(request_of(1, image=tmp_path / "missing.png"))
    name = service.create(request_of(1, guidance_scale=3e38)).id
    video = service.wait(name, TIMEOUT)
    assert video.state == "failed"
    assert video.failure is not None
    assert video.failure.error == "NumericalError"
    assert "section 1" in video.failure.message
    assert_is_plain(video.failure.message)
    assert service.wait(service.create(request_of(1)).id, TIMEOUT).state == "done"


def test_what_fails_unexpectedly_in_an_actor_is_told_without_its_words(
    service: VideoService, workers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    def break_engine(actor: Any) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("secret of the actor")

        actor._engine.submit = fail

    def mend_engine(actor: Any) -> None:
        del actor._engine.submit

    ray.get([actor.__ray_call__.remote(break_engine) for actor in workers._actors])
    video = service.wait(service.create(request_of(1)).id, TIMEOUT)
    assert video.state == "failed"
    assert video.failure is not None
    assert_is_plain(video.failure.message)
    assert "secret" not in video.failure.message
    assert "RuntimeError: secret of the actor" in caplog.text
    ray.get([actor.__ray_call__.remote(mend_engine) for actor in workers._actors])


def test_actors_that_are_lost_while_nothing_is_made_are_replaced(service: VideoService, workers: Any) -> None:
    import ray

    for actor in list(workers._actors):
        ray.kill(actor)
    assert service.wait(service.create(request_of(1)).id, TIMEOUT).state == "done"


def test_what_is_asked_while_no_actor_is_there_is_answered_by_the_next(
    workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    kill, answers = ray.kill, []

    def ask_and_kill(actor: Any) -> None:
        answers.append(pool.submit(workers._ask, lambda found: found.describe.remote()))
        wait_until(lambda: answers[-1].done() or workers._is_started._waiters or workers._actors)
        kill(actor)

    monkeypatch.setattr(ray, "kill", ask_and_kill)
    first, second = workers._actors
    with ThreadPoolExecutor() as pool:
        workers._actors = [second]
        workers._replace(second)
        assert answers[0].result(TIMEOUT) == workers.card
    with workers._lock:
        workers._actors.append(first)
    wait_until(lambda: len(workers._loaded) == 2)


def test_an_actor_that_cannot_load_its_engine_is_replaced_and_told_in_the_log(
    service: VideoService, workers: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(workers, "_source", EngineSource(model="no/such model", config=EngineConfig()))
        workers._replace(workers._actors[0])
        wait_until(lambda: "an actor could not load its engine: " in caplog.text)
        assert "Traceback" not in caplog.text
    assert len(workers._loaded) == 1
    # The video that it was to make is made by the other one.
    for seed in range(2):
        assert service.wait(service.create(request_of(1, seed=seed)).id, TIMEOUT).state == "done"
    wait_until(lambda: len(workers._loaded) == 2)


def test_a_job_for_which_no_actor_can_load_its_engine_is_told_so(
    workers: Any, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isoframe.engine.interfaces.server.videos.ray_workers import LostJobError

    engine.prepare(request_of(1), job_dir=tmp_path / "job")
    with monkeypatch.context() as patch:
        patch.setattr(workers, "_source", EngineSource(model="no/such model", config=EngineConfig()))
        for actor in list(workers._actors):
            workers._replace(actor)
        job = workers.resume(JobFolder.open(tmp_path / "job"), Asked(created=0.0))
        with pytest.raises(LostJobError, match="3 actors failed, 3 of them to load their engine; the log"):
            job.result(TIMEOUT)
    for actor in list(workers._actors):
        workers._replace(actor)
    wait_until(lambda: len(workers._loaded) == 2)


def test_http_serves_what_actors_make(service: VideoService) -> None:
    with serving(service) as ask:
        video = ask.wait(ask.make())
        assert video["status"] == "completed"
        assert ask.events(video["id"])[-1]["status"] == "completed"


def test_a_video_waits_for_an_actor_that_does_not_come_and_can_be_cancelled(
    service: VideoService, workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test: no actor is left after it."""
    import ray

    from isoframe.engine.interfaces.server.videos.ray_workers import VideoActor

    # More cores than the cluster has: Ray keeps them waiting, as it does when a node is gone for good.
    monkeypatch.setattr(workers, "_actor_class", ray.remote(VideoActor).options(num_cpus=10_000))
    name = service.create(request_of(16)).id
    wait_until(lambda: service.get(name).num_finished_sections >= 1)
    for actor in list(workers._actors):
        ray.kill(actor)
    # The one that works on the video, and the other one when the video is to go on in it.
    wait_until(lambda: workers._loaded == [])
    service.cancel(name)
    assert service.wait(name, TIMEOUT).state == "cancelled"
