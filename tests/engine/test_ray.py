"""Videos that actors of Ray make, one of which is killed."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from video_server import load, serving, small_limits

from isoframe.engine import Engine, EngineConfig, InputError, Request, StartedEvent
from isoframe.engine.events import JobEvent
from isoframe.engine.server.engine_source import EngineSource
from isoframe.engine.server.service import VideoService

# Ray is an extra, and a cluster takes ten seconds to start.
pytestmark = [pytest.mark.soak, pytest.mark.slow]
TIMEOUT = 120
ROOT = Path(__file__).resolve().parents[2]


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
        from isoframe.engine.server.ray_workers import RayWorkers

        config = EngineConfig(device="cpu", cache_dir=tmp_path_factory.mktemp("cache"))
        workers = RayWorkers("local", EngineSource(model="demo", config=config), num_actors=2)
        yield workers
        workers.close()


@pytest.fixture
def service(workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VideoService]:
    monkeypatch.setattr(workers, "close", lambda: None)
    with VideoService(workers, tmp_path / "data", limits=small_limits()) as service:
        yield service


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


def test_refusals_and_failures_of_an_actor_are_told(service: VideoService, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        service.create(request_of(1, image=tmp_path / "missing.png"))
    name = service.create(request_of(1, guidance_scale=3e38)).id
    video = service.wait(name, TIMEOUT)
    assert video.state == "failed"
    assert video.failure is not None
    assert video.failure.message.startswith("NumericalError: ")
    assert service.wait(service.create(request_of(1)).id, TIMEOUT).state == "done"


def test_http_serves_what_actors_make(service: VideoService) -> None:
    with serving(service) as ask:
        video = ask.wait(ask.make())
        assert video["status"] == "completed"
        assert ask.events(video["id"])[-1]["status"] == "completed"
