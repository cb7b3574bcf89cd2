"""A job is planned once, its record parsed once and its image decoded once, whichever door it comes through."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile
from typer.testing import CliRunner
from video_server import SMALL, KeptWorkers, picture, serving, small_limits

from isoframe.engine import Engine, EngineConfig, JobFolder, Request
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.jobs.record import JobRecord
from isoframe.engine.weights import memory


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine.load(
        "demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu")
    ) as engine:
        yield engine


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "start.png"
    Image.new("RGB", (70, 64), (200, 60, 40)).save(path)
    return path


def request_of(image: Path) -> Request:
    """A job of one section of 4 frames."""
    return Request(image=image, prompt="a red circle", seconds=4 / 30, num_steps=1, latent_window_size=1)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a job is planned, a record parsed and an image file decoded from now on."""
    counts: Counter[str] = Counter()
    make_plan, from_json, load = memory.make_plan, JobRecord.from_json, ImageFile.ImageFile.load

    def counted_plan(*arguments: Any) -> Any:
        counts["plans"] += 1
        return make_plan(*arguments)

    def counted_parse(*arguments: Any, **options: Any) -> JobRecord:
        counts["parses"] += 1
        return from_json(*arguments, **options)

    def counted_load(self: ImageFile.ImageFile) -> Any:
        # Of an image that is decoded already nothing is left to be read.
        counts["decodes"] += bool(self.tile)
        return load(self)

    monkeypatch.setattr(memory, "make_plan", counted_plan)
    monkeypatch.setattr(JobRecord, "from_json", counted_parse)
    monkeypatch.setattr(ImageFile.ImageFile, "load", counted_load)
    return counts


def test_a_render_plans_and_decodes_once(
    engine: Engine, image: Path, tmp_path: Path, count: Counter[str]
) -> None:
    engine.render(request_of(image), tmp_path / "video.mp4", job_dir=tmp_path / "job")
    assert count == {"plans": 1, "decodes": 1}


def test_a_resumed_job_parses_its_record_once(
    engine: Engine, image: Path, tmp_path: Path, count: Counter[str]
) -> None:
    engine.prepare(request_of(image), job_dir=tmp_path / "job")
    count.clear()
    engine.resume(tmp_path / "job")
    assert count == {"plans": 1, "parses": 1, "decodes": 1}
    count.clear()
    engine.render(
        JobFolder.open(tmp_path / "job").record.request, tmp_path / "b.mp4", job_dir=tmp_path / "job"
    )
    assert count == {"plans": 1, "parses": 2, "decodes": 1}


def test_a_queued_job_is_what_was_asked_for_without_being_read_again(
    engine: Engine, image: Path, tmp_path: Path, count: Counter[str]
) -> None:
    engine.submit(request_of(image), job_dir=tmp_path / "job").result(60)
    assert count == {"plans": 1, "decodes": 1}


def test_generate_plans_and_decodes_once(image: Path, tmp_path: Path, count: Counter[str]) -> None:
    options = ["--prompt", "a", "--seconds", "0.1", "--steps", "1", "--window", "1", "--quiet"]
    paths = ["--out", str(tmp_path / "a.mp4"), "--cache-dir", str(tmp_path / "cache"), "--device", "cpu"]
    result = CliRunner().invoke(build_app(), ["generate", str(image), "--model", "demo", *options, *paths])
    assert result.exit_code == 0, result.output
    assert count == {"plans": 1, "decodes": 1}


def test_a_posted_video_is_planned_and_decoded_once_and_its_record_not_parsed(
    engine: Engine, tmp_path: Path, count: Counter[str]
) -> None:
    service = VideoService(KeptWorkers(engine), tmp_path, max_queued=2, limits=small_limits())
    image = picture()
    with serving(service) as ask:
        count.clear()
        name = ask.send_form(SMALL, image).json["id"]
        assert ask.events(name)[-1]["status"] == "completed"
    assert count == {"plans": 1, "decodes": 1}
