"""Jobs that end badly end alone, and what they made is kept."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_gate import Gate
from PIL import Image

from isoframe.engine import (
    Engine,
    EngineConfig,
    InputError,
    IsoframeError,
    QueueFullError,
    Request,
    StepEvent,
)
from isoframe.engine.files import KeptOutputError
from isoframe.engine.generation.generation import Generation
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.jobs.state import JobState
from isoframe.engine.media.exports import export_video
from isoframe.engine.media.video import read_video_info

TIMEOUT = 60


class PanicException(BaseException):
    """What a panic in Rust becomes in pyo3."""


class Filter:
    """A frame filter that fails when it is told to."""

    error: BaseException | None = None

    def __call__(self, frames: Any, first_frame: int) -> Any:
        if self.error is not None:
            raise self.error
        return frames


@pytest.fixture(scope="module")
def frame_filter() -> Filter:
    return Filter()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, frame_filter: Filter) -> Iterator[Engine]:
    config = EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu")
    with Engine.load("demo", config=config, frame_filter=frame_filter) as engine:
        yield engine


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


def request_of(**changes: Any) -> Request:
    """Two sections, 9 frames."""
    fields: dict[str, Any] = {
        "image": Image.new("RGB", (64, 64), (200, 60, 40)), "prompt": "a red circle", "seconds": 0.25, "num_steps": 1,
        "latent_window_size": 1, "seed": 5,
    }  # fmt: skip
    return Request(**fields | changes)


@pytest.mark.parametrize(
    "error", [SystemExit(3), PanicException("index out of bounds"), MemoryError(), RecursionError()]
)
def test_whatever_a_filter_raises_ends_one_job(
    engine: Engine, frame_filter: Filter, tmp_path: Path, error: BaseException
) -> None:
    frame_filter.error = error
    first = engine.submit(request_of(), tmp_path / "a.mp4", job_dir=tmp_path / "a")
    with pytest.raises((IsoframeError, MemoryError, RecursionError)):
        first.result(TIMEOUT)
    frame_filter.error = None
    assert first.state is JobState.FAILED
    assert engine.submit(request_of(), tmp_path / "b.mp4").result(TIMEOUT).num_frames > 1
    # What it had sampled is there.
    assert engine.resume(tmp_path / "a").path.read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_what_is_called_with_the_end_of_a_job_ends_no_other(
    engine: Engine, tmp_path: Path, gate: Gate
) -> None:
    jobs = [engine.submit(request_of(seed=seed), tmp_path / f"{seed}.mp4") for seed in (1, 2)]

    def leave(_: object) -> None:
        raise SystemExit

    jobs[0].add_done_callback(leave)
    gate.open()
    assert [job.result(TIMEOUT).num_frames > 1 for job in jobs] == [True, True]


def test_a_callback_that_leaves_the_program_keeps_the_job(engine: Engine, tmp_path: Path) -> None:
    def leave(event: object) -> None:
        if isinstance(event, StepEvent) and event.section == 1:
            raise SystemExit

    with pytest.raises(SystemExit):
        engine.render(request_of(), tmp_path / "a.mp4", on_event=leave, job_dir=tmp_path / "job")
    assert JobFolder.open(tmp_path / "job").status().num_finished_sections == 1


def test_a_thread_that_cannot_start_refuses_one_job(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(QueueFullError, match="can't start new thread"):
            engine.submit(request_of(), tmp_path / "a.mp4", job_dir=tmp_path / "a")
    assert (
        engine.submit(request_of(), tmp_path / "a.mp4", job_dir=tmp_path / "a").result(TIMEOUT).num_frames > 1
    )


@pytest.mark.parametrize("option", ["path", "latents_path", "png_dir"])
def test_two_jobs_that_wait_do_not_write_one_output(
    engine: Engine, tmp_path: Path, gate: Gate, option: str
) -> None:
    suffix = {"path": ".mp4", "latents_path": ".safetensors", "png_dir": ""}[option]
    (tmp_path / "link").symlink_to(tmp_path)
    one: dict[str, Any] = {option: tmp_path / f"a{suffix}"}
    two: dict[str, Any] = {option: tmp_path / "link" / f"a{suffix}"}
    first = engine.submit(request_of(), job_dir=tmp_path / "one", **one)
    with pytest.raises(InputError, match="that of the job"):
        engine.submit(request_of(), job_dir=tmp_path / "two", **two)
    assert not (tmp_path / "two").exists()
    gate.open()
    first.result(TIMEOUT)


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_video_that_appeared_meanwhile_stays_and_the_new_one_is_kept(
    engine: Engine, tmp_path: Path, is_kept: bool
) -> None:
    path = tmp_path / "a.mp4"

    def write(event: object) -> None:
        if isinstance(event, StepEvent):
            path.write_bytes(b"of somebody else")

    with pytest.raises(KeptOutputError, match="appeared") as caught:
        engine.render(request_of(), path, on_event=write, job_dir=tmp_path / "job" if is_kept else None)
    assert path.read_bytes() == b"of somebody else"
    made = engine.render(request_of(), tmp_path / "b.mp4").path
    assert caught.value.kept.read_bytes() == made.read_bytes()
    assert list(tmp_path.glob("*.partial*")) == []
    if is_kept:
        assert engine.resume(tmp_path / "job", tmp_path / "c.mp4").path.read_bytes() == made.read_bytes()


@pytest.mark.parametrize("step", ["fsync", "replace", "link"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_frames_outlast_a_failure_at_the_end(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    """Every write to the folder of the output fails; there is no job folder."""
    (tmp_path / "out").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    call = getattr(os, step)

    def fail(target: Any, *arguments: Any, **options: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
        if "/out/" in path and ".mp4." in path:
            raise OSError(code, os.strerror(code))
        return call(target, *arguments, **options)

    monkeypatch.setattr(os, step, fail)
    overwrite = step == "replace"
    if step == "link":
        # As on a file system without links, and then this too.
        monkeypatch.setattr(os, "open", _failing_open(code, os.open))
    with pytest.raises(InputError, match=os.strerror(code)) as caught:
        engine.render(request_of(), tmp_path / "out" / "a.mp4", overwrite=overwrite)
    kept = [path for path in tmp_path.glob("*/*.mp4")]
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert any(str(path) in told and read_video_info(path).num_frames >= 5 for path in kept), told


def _failing_open(code: int, call: Any) -> Any:
    def fail(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_EXCL and str(path).endswith("/out/a.mp4"):
            raise OSError(code, os.strerror(code))
        opened: int = call(path, flags, *arguments, **options)
        return opened

    return fail


def test_names_are_checked_before_a_job_is_read(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Generation, "sections", None)
    name = "漢" * 82
    for outputs in (
        {"path": tmp_path / f"{name}.mp4"},
        {"path": tmp_path / "a.mp4", "latents_path": tmp_path / f"{name}.safetensors"},
        {"path": tmp_path / "a.mp4", "png_dir": tmp_path / f"{name}{name}"},
        {"path": tmp_path / "a.mp4", "job_dir": tmp_path / f"{name}{name}"},
    ):
        for make in (engine.submit, engine.render):
            with pytest.raises(InputError, match="must have at most"):
                make(request_of(), **outputs)  # type: ignore[operator]  # both take these
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_no_input(engine: Engine, tmp_path: Path) -> None:
    made = engine.render(request_of(), tmp_path / "a.mp4").path
    content = made.read_bytes()
    for link in (os.symlink, os.link):
        link(made, tmp_path / f"{link.__name__}.mp4")
    for name in ("a.mp4", "symlink.mp4", "link.mp4"):
        with pytest.raises(InputError, match="made from"):
            export_video(made, tmp_path / name, overwrite=True)
        with pytest.raises(InputError, match="made from"):
            engine.render(
                request_of(image=None, video=made, direction="forward", order="forward"),
                tmp_path / name,
                overwrite=True,
            )
    assert made.read_bytes() == content
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.new("RGB", (64, 64)).save(frames / "frame_00003.png")
    with pytest.raises(InputError, match="made from"):
        engine.render(
            request_of(image=frames / "frame_00003.png"), tmp_path / "b.mp4", png_dir=frames, overwrite=True
        )
    with pytest.raises(InputError, match="made from"):
        engine.render_frame(
            request_of(image=frames / "frame_00003.png"),
            frames / "frame_00003.png",
            target_index=1,
            overwrite=True,
        )
