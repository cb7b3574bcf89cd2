"""What decides the bits is recorded, and taken from the record by whoever goes on with a job or makes a video again."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from isoframe.engine import Engine, EngineConfig, Event, JobEvent, Request, StepEvent
from isoframe.engine.generation import numerics
from isoframe.engine.generation.numerics import changed_numerics
from isoframe.engine.interfaces.server.serving import Serving
from isoframe.engine.interfaces.server.videos.engine_source import EngineSource
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.jobs.metadata import package_versions
from isoframe.engine.media.video import read_video_info
from isoframe.engine.reproduction import Recipe, reproduce


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    config = EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu")
    with Engine.load("demo", config=config) as engine:
        yield engine


@pytest.fixture(autouse=True)
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    Image.new("RGB", (64, 64), (200, 60, 40)).save(tmp_path / "start.png")
    return Request(
        image=tmp_path / "start.png", prompt="a red circle", seconds=8 / 30, num_steps=2, latent_window_size=1
    )


class Watch:
    """Threads of every step; stops the job when its first section is finished."""

    def __init__(self, is_stopping: bool = False) -> None:
        self.is_stopping = is_stopping
        self.threads: set[int] = set()
        self.notes: tuple[str, ...] = ()

    def __call__(self, event: Event) -> None:
        if isinstance(event, JobEvent):
            self.notes = event.notes
        if isinstance(event, StepEvent):
            self.threads.add(torch.get_num_threads())
            if self.is_stopping and event.section == 1:
                raise KeyboardInterrupt


def stop_after_a_section(engine: Engine, request_: Request, folder: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        engine.render(request_, folder / "video.mp4", job_dir=folder / "job", on_event=Watch(True))
    return folder / "job"


@pytest.mark.parametrize("is_submitted", [False, True], ids=["resumed", "submitted again"])
def test_a_job_goes_on_with_its_threads(
    engine: Engine, request_: Request, tmp_path: Path, threads: Callable[[int], None], is_submitted: bool
) -> None:
    threads(2)
    job = stop_after_a_section(engine, request_, tmp_path)
    threads(1)
    watch = Watch()
    if is_submitted:
        video = engine.submit(request_, tmp_path / "video.mp4", job_dir=job).result()
    else:
        video = engine.resume(job, on_event=watch)
        assert (watch.threads, watch.notes) == ({2}, ())
    assert torch.get_num_threads() == 1
    assert video.metadata["numerics"] == {
        "threads": 2,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "attention": "sdpa",
        "sampler_revision": 2,
    }
    assert "numerics_changes" not in video.metadata


def test_what_cannot_be_taken_from_a_record_is_said(
    engine: Engine, request_: Request, tmp_path: Path
) -> None:
    job = stop_after_a_section(engine, request_, tmp_path)
    record = json.loads((job / "job.json").read_text())
    # As of another machine: not an edited record.
    del record["hashes"]
    record["metadata"]["numerics"] |= {"attention": "flash-attn", "threads": 10**9, "lane": "new"}
    (job / "job.json").write_text(json.dumps(record))
    watch = Watch()
    video = engine.resume(job, on_event=watch)
    assert video.metadata["numerics_changes"] == list(watch.notes)
    for name, then in (("attention", "flash-attn"), ("threads", 10**9), ("lane", "new")):
        assert any(note.startswith(f"{name} {then} then, ") for note in watch.notes)
    recipe = Recipe.read(video.path)
    made = reproduce(engine, recipe, recipe.request(None, tmp_path), tmp_path / "again.mp4")
    assert f"in the middle of the job: {watch.notes[0]}" in made.differences


def test_a_job_goes_on_after_an_upgrade_and_says_that_two_versions_made_it(
    engine: Engine, request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = stop_after_a_section(engine, request_, tmp_path)
    now = package_versions() | {"torch": "99.0", "isoframe": "9.9.9", "python": "9.9"}
    monkeypatch.setattr(numerics, "package_versions", lambda: now)
    watch = Watch()
    video = engine.resume(job, on_event=watch)
    assert [note.partition(":")[0].partition(" then, ")[2] for note in watch.notes] == [
        "9.9.9 now",
        "99.0 now",
    ]
    assert video.metadata["versions_changes"] == list(watch.notes)
    assert video.metadata["versions"] == package_versions()
    # It is still the job's own, should the end not have been noted.
    (job / "done.json").unlink()
    assert JobFolder.open(job).may_replace(video.path)
    recipe = Recipe.read(video.path)
    made = reproduce(engine, recipe, recipe.request(None, tmp_path), tmp_path / "again.mp4")
    assert f"in the middle of the job: {watch.notes[0]}" in made.differences


def test_a_video_is_reproduced_with_its_threads(
    engine: Engine, request_: Request, tmp_path: Path, threads: Callable[[int], None]
) -> None:
    threads(2)
    engine.render(request_, tmp_path / "video.mp4")
    threads(1)
    recipe, watch = Recipe.read(tmp_path / "video.mp4"), Watch()
    made = reproduce(engine, recipe, recipe.request(None, tmp_path), tmp_path / "again.mp4", on_event=watch)
    assert (watch.threads, made.differences) == ({2}, ())
    assert read_video_info(tmp_path / "again.mp4").metadata["numerics"]["threads"] == 2  # type: ignore[index]  # JSON


@pytest.mark.parametrize(("given", "expected"), [(None, 1), (2, 2)])
def test_serve_computes_on_as_many_threads_as_every_door(
    monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None], given: int | None, expected: int
) -> None:
    threads(1)
    monkeypatch.setattr(EngineSource, "load", lambda self: None)
    Serving(source=EngineSource(model="demo", config=EngineConfig()), data=Path(), num_threads=given).load()
    assert torch.get_num_threads() == expected


def test_a_product_that_is_exact_either_way_is_no_change() -> None:
    then: dict[str, Any] = {"product": "int8", "threads": 1}
    assert changed_numerics(then, {"product": "fp32", "threads": 1}) == ()
    assert changed_numerics(then, {"threads": 2}) == ("threads 1 then, 2 now: not the same bit for bit",)
