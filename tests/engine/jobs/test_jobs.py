"""Jobs on a thread: order, events for many readers, cancelling, several engines."""

import gc
import itertools
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from job_gate import Gate
from PIL import Image
from safetensors.torch import load_file

from isoframe.engine import (
    CancelledEvent,
    ConfigError,
    DoneEvent,
    Engine,
    EngineConfig,
    Event,
    FailureEvent,
    FileEvent,
    InputError,
    Job,
    JobCancelledError,
    JobEvent,
    NumericalError,
    PartialEvent,
    PhaseEvent,
    PreviewEvent,
    QueuedEvent,
    QueueFullError,
    Request,
    SamplingConfig,
    SectionEvent,
    StartedEvent,
    StepEvent,
)
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.jobs.log import JobLog
from isoframe.engine.jobs.queue import JobQueue
from isoframe.engine.media.images import load_image
from isoframe.engine.media.video import Video, read_video_info
from isoframe.engine.sampling.denoiser import Denoiser
from isoframe.engine.sampling.history import History, JobNoise, SampledSections
from isoframe.engine.sampling.sampler import sigma_schedule
from isoframe.engine.sampling.step_cache import StepCache, make_step_cache

TIMEOUT = 60


def load(folder: Path, **changes: Any) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=folder, device="cpu", **changes))


def job_in(path: Path, *, priority: int = 0, **options: Any) -> Job:
    """A job that no engine has prepared."""
    folder = SimpleNamespace(path=path, record=SimpleNamespace(request=SimpleNamespace(fps=30)))
    return Job(cast(JobFolder, folder), priority=priority, **options)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(tmp_path_factory.mktemp("cache"), max_queued_jobs=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def request_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Request]:
    """A job of 3 short sections: 13 frames."""
    path = tmp_path_factory.mktemp("image") / "start.png"
    Image.new("RGB", (64, 64), (200, 60, 40)).save(path)

    def make(**changes: Any) -> Request:
        fields: dict[str, Any] = {
            "image": path, "prompt": "a red circle moves right", "seconds": 0.4, "num_steps": 2,
            "latent_window_size": 1, "order": "inverted", "seed": 5,
        }  # fmt: skip
        return Request(**fields | changes)

    return make


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


def test_a_job_tells_all_that_happens_and_gives_the_video_of_render(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    job = engine.submit(request_of(), tmp_path / "video.mp4", job_dir=tmp_path / "job")
    entries = list(job.events())
    video = job.result(TIMEOUT)
    straight = engine.render(request_of(), tmp_path / "straight.mp4")
    assert video.path.read_bytes() == straight.path.read_bytes()
    assert job.state == "done"
    events = [entry.event for entry in entries]
    assert [entry.index for entry in entries] == list(range(len(entries)))
    assert events[0] == QueuedEvent(num_ahead=0, priority=0)
    assert events[1] == StartedEvent(job_dir=tmp_path / "job")
    assert events[-1] == DoneEvent(path=tmp_path / "video.mp4", num_frames=13)
    steps = [(event.section, event.step) for event in events if isinstance(event, StepEvent)]
    assert steps == [(section, step) for section in range(3) for step in range(2)]
    assert [event.num_final_frames for event in events if isinstance(event, SectionEvent)][-1] == 13
    assert events[-2] == FileEvent(path=tmp_path / "video.mp4")
    assert {type(event) for event in events} >= {JobEvent, PhaseEvent, SectionEvent, StepEvent}


def test_entries_say_when_the_end_comes_and_where_in_the_video_the_job_is(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    entries = list(engine.submit(request_of(), tmp_path / "video.mp4", job_dir=tmp_path / "job").events())
    assert all(before.seconds <= after.seconds for before, after in itertools.pairwise(entries))
    steps = [entry for entry in entries if isinstance(entry.event, StepEvent)]
    # The end of the video is made first.
    assert [entry.video_seconds for entry in steps[::2]] == [
        pytest.approx((start / 30, (start + 4) / 30)) for start in (9, 5, 1)
    ]
    assert entries[0].seconds_left is None
    assert all(entry.seconds_left is not None for entry in entries[entries.index(steps[0]) :])
    assert entries[-1].seconds_left == pytest.approx(0)


def test_readers_replay_follow_and_start_where_they_were(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, gate: Gate
) -> None:
    job = engine.submit(request_of(), job_dir=tmp_path / "job")
    gate.wait()
    early = job.events()
    first = next(early)
    found: list[list[int]] = [[] for _ in range(4)]

    def read(number: int) -> None:
        found[number] = [entry.index for entry in job.events()]

    readers = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for reader in readers:
        reader.start()
    gate.open()
    for reader in readers:
        reader.join(TIMEOUT)
    late = [entry.index for entry in job.events()]
    assert late == list(range(len(late)))
    assert found == [late] * 4
    assert [first.index, *(entry.index for entry in early)] == late
    assert [entry.index for entry in job.events(after=5)] == late[6:]
    assert list(job.events(after=late[-1])) == []


def test_a_log_keeps_the_last_entries_and_their_numbers() -> None:
    log = JobLog(30, max_entries=3)
    for number in range(5):
        log.append(PhaseEvent(phase=str(number)))
    log.append(PhaseEvent(phase="end"), is_last=True)
    assert [(entry.index, entry.event.phase) for entry in log.entries()] == [(3, "3"), (4, "4"), (5, "end")]


def test_steps_in_a_log_hold_no_memory(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    job = engine.submit(request_of(), job_dir=tmp_path / "job")
    steps = [entry.event for entry in job.events() if isinstance(entry.event, StepEvent)]
    assert {(step.x0.device.type, *step.x0.shape) for step in steps} == {("meta", 1, 16, 1, 8, 8)}


def test_a_job_without_a_path_lies_in_its_folder_in_the_cache(
    engine: Engine, request_of: Callable[..., Request]
) -> None:
    job = engine.submit(request_of())
    assert job.path.parent == engine.config.cache_path() / "jobs"
    assert job.result(TIMEOUT).path == job.path / "video.mp4"
    JobFolder.open(job.path).delete()
    assert [path.name for path in job.path.iterdir()] == ["video.mp4"]


def test_previews_are_drawn_at_every_step(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    job = engine.submit(request_of(), job_dir=tmp_path / "job", has_previews=True)
    previews = [entry.event for entry in job.events() if isinstance(entry.event, PreviewEvent)]
    assert [(preview.section, preview.step) for preview in previews] == [
        (section, step) for section in range(3) for step in range(2)
    ]
    assert previews[0].path == tmp_path / "job" / "previews" / "section_000.png"
    assert previews[0].path.exists()


def test_a_job_writes_frames_and_latents_as_render_does_and_after_a_stop_too(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, SectionEvent):
            raise JobCancelledError

    engine.render(
        request_of(), tmp_path / "a.mp4", png_dir=tmp_path / "a", latents_path=tmp_path / "a.safetensors"
    )
    job = engine.submit(
        request_of(),
        tmp_path / "b.mp4",
        job_dir=tmp_path / "job",
        png_dir=tmp_path / "b",
        latents_path=tmp_path / "b.safetensors",
    )
    job.result(TIMEOUT)
    frames = [(path.name, load_image(path).tobytes()) for path in sorted((tmp_path / "a").iterdir())]
    assert [(path.name, load_image(path).tobytes()) for path in sorted((tmp_path / "b").iterdir())] == frames
    assert len(frames) == 13
    straight = load_file(tmp_path / "a.safetensors")["latents"]
    assert torch.equal(load_file(tmp_path / "b.safetensors")["latents"], straight)
    with pytest.raises(JobCancelledError):
        engine.render(request_of(), tmp_path / "c.mp4", job_dir=tmp_path / "stopped", on_event=stop)
    engine.resume(tmp_path / "stopped", latents_path=tmp_path / "c.safetensors")
    assert torch.equal(load_file(tmp_path / "c.safetensors")["latents"], straight)


@pytest.mark.parametrize("name", ["png_dir", "latents_path"])
def test_a_job_whose_frames_or_latents_cannot_be_written_is_refused_at_once(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, name: str
) -> None:
    (tmp_path / "frame_00000.png").touch()
    (tmp_path / "latents.safetensors").touch()
    place = {"png_dir": tmp_path, "latents_path": tmp_path / "latents.safetensors"}[name]
    with pytest.raises(InputError, match="pass --overwrite"):
        engine.submit(request_of(), job_dir=tmp_path / "job", **{name: place})  # type: ignore[arg-type]  # a path
    assert not (tmp_path / "job").exists()


def test_higher_priorities_run_first_and_equals_in_order(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    go = threading.Event()

    def make(name: str, priority: int) -> Job:
        def render(_: Callable[[Event], None]) -> Video:
            started.append(name)
            assert go.wait(TIMEOUT)
            return Video(path=tmp_path / name, num_frames=1, fps=30, width=1, height=1, seconds=1)

        return job_in(tmp_path / name, priority=priority, render=render)

    queue = JobQueue(max_queued=9)
    jobs = [make("first", 0)]
    queue.put(jobs[0])
    next(entry for entry in jobs[0].events() if isinstance(entry.event, StartedEvent))
    for name, priority in [("a", 0), ("low", -1), ("b", 0), ("high", 5)]:
        jobs.append(make(name, priority))
        queue.put(jobs[-1])
    ahead = [next(job.events()).event.num_ahead for job in jobs]
    go.set()
    for job in jobs:
        job.result(TIMEOUT)
    assert started == ["first", "high", "a", "b", "low"]
    assert ahead == [0, 1, 2, 2, 1]


def test_a_queue_of_two_threads_runs_two_jobs_at_a_time(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=TIMEOUT)

    def render(_: Callable[[Event], None]) -> Video:
        both.wait()
        return Video(path=tmp_path, num_frames=1, fps=30, width=1, height=1, seconds=1)

    queue = JobQueue(max_queued=9, num_threads=2)
    jobs = [job_in(tmp_path, render=render) for _ in range(4)]
    for job in jobs:
        queue.put(job)
    assert [job.result(TIMEOUT).num_frames for job in jobs] == [1] * 4
    queue.close()


def test_a_job_ends_and_the_next_one_runs_though_the_device_gives_no_memory_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Callable[[Event], None]) -> Video:
        raise NumericalError("latents became NaN", section=0, step=1, backend="sdpa")

    def broken() -> None:
        raise RuntimeError("the device is gone")

    job = job_in(tmp_path, render=fail, release=broken)
    told: list[str] = []
    job.add_done_callback(lambda over: told.append(over.state))
    job.run()
    assert told == ["failed"]
    with pytest.raises(NumericalError, match="NaN") as caught:
        job.result(0)
    assert "could not be given back: the device is gone" in caught.value.__notes__[-1]
    assert "could not give back" in caplog.text


def test_a_thread_that_ends_early_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def render(_: Callable[[Event], None]) -> Video:
        return Video(path=tmp_path, num_frames=1, fps=30, width=1, height=1, seconds=1)

    def leave() -> None:
        threads.append(threading.current_thread())
        reached.set()
        assert go.wait(TIMEOUT)
        raise SystemExit

    threads: list[threading.Thread] = []
    reached, go = threading.Event(), threading.Event()
    # pytest reports the exit, which is meant here.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    queue = JobQueue(max_queued=9)
    ends_it, after = (job_in(tmp_path, render=render) for _ in range(2))
    monkeypatch.setattr(ends_it, "run", leave)
    queue.put(ends_it)
    assert reached.wait(TIMEOUT)
    queue.put(after)
    go.set()
    assert after.result(TIMEOUT).num_frames == 1
    threads[0].join(TIMEOUT)
    queue.close()


def test_callbacks_come_once_when_the_job_is_over_or_at_once(tmp_path: Path) -> None:
    told: list[str] = []
    job = job_in(tmp_path, render=lambda _: pytest.fail("it was cancelled"))
    # It may ask the job, and that it has entries shows that the job's lock is free.
    job.add_done_callback(
        lambda over: told.append(f"{over.state} {len(over.read_events()[0])} {over.cancel()}")
    )
    assert (told, job.read_events()) == ([], ([], False))
    job.cancel()
    job.add_done_callback(lambda over: told.append(over.state))
    job.run()
    assert told == ["cancelled 1 False", "cancelled"]


def test_a_callback_may_close_the_queue_of_its_job(tmp_path: Path) -> None:
    queue, go, told = JobQueue(4), threading.Event(), list[str]()

    def render(_: object) -> Video:
        assert go.wait(TIMEOUT)
        return Video(path=tmp_path, num_frames=1, fps=30, width=1, height=1, seconds=1)

    first, second = (job_in(tmp_path, render=render) for _ in range(2))

    def close(_: Job) -> None:
        queue.close()
        told.append(second.state)

    first.add_done_callback(close)
    queue.put(first)
    queue.put(second)
    thread = next(iter(queue._threads))
    go.set()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert (told, first.state) == (["cancelled"], "done")


def test_a_job_that_is_cancelled_when_its_file_is_there_is_done(tmp_path: Path) -> None:
    def render(on_event: Callable[[Event], None]) -> Video:
        assert job.cancel()
        on_event(FileEvent(path=tmp_path / "video.mp4"))
        return Video(path=tmp_path, num_frames=1, fps=30, width=1, height=1, seconds=1)

    job = job_in(tmp_path, render=render)
    job.run()
    assert (job.state, job.is_cancelled) == ("done", True)


def test_a_job_fails_with_errors_that_are_causes_of_each_other(tmp_path: Path) -> None:
    def render(_: object) -> Video:
        one, other = RuntimeError("one"), RuntimeError("other")
        one.__cause__, other.__cause__ = other, one
        raise one

    job = job_in(tmp_path, render=render)
    threading.Thread(target=job.run, daemon=True).start()
    with pytest.raises(RuntimeError, match="one"):
        job.result(TIMEOUT)


def test_a_full_queue_refuses_and_keeps_the_folder(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, gate: Gate
) -> None:
    jobs = [engine.submit(request_of(), job_dir=tmp_path / "0")]
    gate.wait()
    jobs += [engine.submit(request_of(), job_dir=tmp_path / str(number)) for number in (1, 2)]
    with pytest.raises(QueueFullError, match="2 jobs wait, max_queued_jobs=2 may"):
        engine.submit(request_of(), job_dir=tmp_path / "3")
    # A cancelled one makes room at once.
    assert jobs[1].cancel()
    assert jobs[1].state == "cancelled"
    jobs[1] = engine.submit(request_of(), job_dir=tmp_path / "3")
    gate.open()
    assert [job.result(TIMEOUT).num_frames for job in jobs] == [13, 13, 13]


def test_cancelling_takes_effect_within_one_step_and_keeps_what_is_finished(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    job = engine.submit(request_of(num_steps=8), tmp_path / "video.mp4", job_dir=tmp_path / "job")
    for entry in job.events():
        if isinstance(entry.event, StepEvent) and (entry.event.section, entry.event.step) == (1, 2):
            assert job.cancel()
            break
    rest = [entry.event for entry in job.events(after=entry.index)]
    assert len([event for event in rest if isinstance(event, StepEvent)]) <= 1
    with pytest.raises(JobCancelledError):
        job.result(TIMEOUT)
    assert isinstance(rest[-1], CancelledEvent)
    assert (rest[-1].signal, job.state) == ("cancel", "cancelled")
    partial = next(event for event in rest if isinstance(event, PartialEvent))
    assert read_video_info(partial.path).num_frames == partial.num_frames > 0
    assert not job.cancel()
    assert JobFolder.open(tmp_path / "job").status().num_finished_sections == 1
    again = engine.submit(request_of(num_steps=8), job_dir=tmp_path / "job")
    straight = engine.render(request_of(num_steps=8), tmp_path / "straight.mp4")
    assert again.result(TIMEOUT).path == tmp_path / "video.mp4"
    assert (tmp_path / "video.mp4").read_bytes() == straight.path.read_bytes()


@pytest.mark.parametrize("ending", ["cancel", "failure"])
def test_a_job_that_stops_early_lets_go_of_its_tensors_and_then_of_the_device(
    engine: Engine,
    request_of: Callable[..., Request],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    tensors: list[weakref.ref[Any]] = []
    append, denoise = History.append, Denoiser._denoise

    def watch(self: History, plan: Any, latents: Any) -> None:
        append(self, plan, latents)
        tensors.extend(weakref.ref(tensor) for tensor in (latents, *self.frames.values()))

    def fail_at_the_second(self: Denoiser, noise: Any, *args: Any) -> Any:
        tensors.append(weakref.ref(noise))
        if ending == "failure" and len(tensors) > 3:
            raise NumericalError("broken", section=1, step=0, backend="none")
        return denoise(self, noise, *args)

    alive_at_release: list[Any] = []

    def release() -> None:
        gc.collect()
        alive_at_release.extend(tensor() for tensor in tensors if tensor() is not None)
        released.append(True)

    released: list[bool] = []
    monkeypatch.setattr(History, "append", watch)
    monkeypatch.setattr(Denoiser, "_denoise", fail_at_the_second)
    monkeypatch.setattr(engine, "release", release)
    job = engine.submit(request_of(), job_dir=tmp_path / "job")
    for entry in job.events():
        if ending == "cancel" and isinstance(entry.event, SectionEvent):
            job.cancel()
    with pytest.raises((JobCancelledError, NumericalError)) as caught:
        job.result(TIMEOUT)
    assert len(tensors) >= 3
    assert released == [True]
    assert alive_at_release == []
    assert caught.value.__notes__


def test_a_failure_is_the_last_event_and_raised_by_result(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise NumericalError("latents became NaN", section=0, step=1, backend="sdpa")

    monkeypatch.setattr(Denoiser, "_denoise", fail)
    job = engine.submit(request_of(), job_dir=tmp_path / "job")
    *_, last = job.events()
    assert isinstance(last.event, FailureEvent)
    assert (last.event.error, last.event.exit_code, job.state) == ("NumericalError", 1, "failed")
    assert str(tmp_path / "job") in last.event.notes[0]
    with pytest.raises(NumericalError, match="NaN"):
        job.result(TIMEOUT)
    monkeypatch.undo()
    assert engine.submit(request_of(), job_dir=tmp_path / "job").result(TIMEOUT).num_frames == 13


def test_a_bad_request_is_refused_at_once(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="does not exist"):
        engine.submit(request_of(image=tmp_path / "missing.png"), job_dir=tmp_path / "job")
    (tmp_path / "taken.mp4").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists"):
        engine.submit(request_of(), tmp_path / "taken.mp4", job_dir=tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_a_queued_job_is_on_the_disk_before_its_turn(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, gate: Gate
) -> None:
    engine.submit(request_of(), job_dir=tmp_path / "first")
    gate.wait()
    queued = engine.submit(request_of(prompt="a blue square"), job_dir=tmp_path / "second")
    record = json.loads((tmp_path / "second" / "job.json").read_text())
    assert record["request"]["prompt"] == "a blue square"
    with pytest.raises(TimeoutError, match="is queued after 0 s"):
        queued.result(0)
    queued.cancel()
    assert [type(entry.event) for entry in queued.events()] == [QueuedEvent, CancelledEvent]


def test_closing_an_engine_cancels_its_jobs(
    request_of: Callable[..., Request], tmp_path: Path, gate: Gate
) -> None:
    engine = load(tmp_path / "cache")
    jobs = [engine.submit(request_of(), job_dir=tmp_path / name) for name in ("a", "b")]
    gate.wait()
    threading.Timer(0.05, gate.open).start()
    engine.close()
    assert [job.state for job in jobs] == ["cancelled", "cancelled"]
    with pytest.raises(ConfigError, match="closed"):
        engine.submit(request_of(), job_dir=tmp_path / "c")


def test_two_engines_work_at_the_same_time_and_do_not_disturb_each_other(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    requests = [request_of(), replace(request_of(), seed=6, order="forward")]
    straight = [
        engine.render(request, tmp_path / f"straight-{number}.mp4").path.read_bytes()
        for number, request in enumerate(requests)
    ]
    # Each waits at its first step until the other one is there.
    both = threading.Barrier(2, timeout=TIMEOUT)

    def load_and_meet(folder: Path) -> Engine:
        is_met: list[bool] = []

        def meet(sampling: SamplingConfig) -> StepCache:
            if threading.current_thread().name == "isoframe-jobs" and not is_met:
                is_met.append(True)
                both.wait()
            return make_step_cache(sampling)

        return Engine.load("demo", config=EngineConfig(cache_dir=folder, device="cpu"), step_caches=meet)

    with load_and_meet(tmp_path / "a") as first, load_and_meet(tmp_path / "b") as second:
        jobs = [
            owner.submit(requests[number], job_dir=tmp_path / f"job-{number}")
            for number, owner in enumerate((first, second))
        ]
        assert [job.result(TIMEOUT).path.read_bytes() for job in jobs] == straight
    assert both.n_waiting == 0


def test_noise_does_not_follow_the_default_dtype_that_a_loading_engine_changes() -> None:
    before = torch.get_default_dtype()
    straight = JobNoise(5, (1, 2), SampledSections()).draw()
    torch.set_default_dtype(torch.bfloat16)
    try:
        noise = JobNoise(5, (1, 2), SampledSections(num_sections=0, next_seed=5)).draw()
        sigmas = sigma_schedule(5, 100)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(noise, straight)
    assert torch.equal(sigmas, sigma_schedule(5, 100))
