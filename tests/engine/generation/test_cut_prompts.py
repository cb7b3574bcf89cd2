"""A prompt that an encoder does not read to its end: told by an event, the metadata and a service's answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from video_server import KeptWorkers

from isoframe.engine import Engine, EngineConfig, Event, JobEvent, JobFolder, NoteEvent, Request
from isoframe.engine.interfaces.app.studio import Studio
from isoframe.engine.interfaces.server.http.schemas import VideoObject
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.media.video import read_video_info

LONG = "a red circle moves right " * 100


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    config = EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu")
    with Engine.load("demo", config=config) as engine:
        yield engine


def asked(folder: Path, **fields: object) -> Request:
    Image.new("RGB", (64, 64), (200, 60, 40)).save(folder / "start.png")
    short = {"image": folder / "start.png", "seconds": 8 / 30, "num_steps": 2, "latent_window_size": 1}
    return Request(**short | fields)  # type: ignore[arg-type]  # of the caller


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, NoteEvent)]


@pytest.mark.parametrize(
    "fields",
    [{"prompt": LONG}, {"prompt": "a circle", "negative_prompt": LONG, "cfg_scale": 2.0}],
    ids=["prompt", "negative"],
)
def test_a_cut_is_told_by_an_event_and_in_the_file(
    engine: Engine, tmp_path: Path, fields: dict[str, object]
) -> None:
    for name in ("new.mp4", "from the cache.mp4"):
        events: list[Event] = []
        video = engine.render(asked(tmp_path, **fields), tmp_path / name, on_event=events.append)
        assert [text.split(" reads")[0].split()[-1] for text in notes(events)] == [
            "text_encoder",
            "text_encoder_2",
        ]
        assert read_video_info(video.path).metadata["prompt_cuts"] == notes(events)


def test_what_is_read_to_its_end_is_not_told(engine: Engine, tmp_path: Path) -> None:
    events: list[Event] = []
    video = engine.render(asked(tmp_path, prompt="a circle"), tmp_path / "a.mp4", on_event=events.append)
    assert (notes(events), video.metadata["prompt_cuts"]) == ([], [])


def test_options_without_effect_are_told_before_the_work(engine: Engine, tmp_path: Path) -> None:
    events: list[Event] = []
    request = asked(tmp_path, prompt="a circle", negative_prompt="blurry")
    engine.render(request, tmp_path / "a.mp4", on_event=events.append)
    assert isinstance(events[0], JobEvent)
    assert events[0].notes[0].startswith("negative_prompt 'blurry' is ignored")


def test_a_service_and_the_app_tell_both(engine: Engine, tmp_path: Path) -> None:
    request = asked(tmp_path, prompt=LONG, negative_prompt="blurry")
    with VideoService(KeptWorkers(engine), tmp_path / "service") as service:
        video = service.create(request)
        told = VideoObject.of(service.wait(video.id)).notes
        assert [note.split()[0] for note in told] == ["negative_prompt", "the", "the"]
        shown: Any = None
        described = Studio(service, engine, shown).describe(service.get(video.id))
        assert all(note in described for note in told)


def test_the_home_folder_is_meant_in_the_paths_of_outputs(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    request = asked(tmp_path, prompt="a circle", image="~/start.png")
    engine.render(
        request, "~/a.mp4", job_dir="~/job", png_dir="~/frames", latents_path=Path("~/a.safetensors")
    )
    assert {"a.mp4", "job", "frames", "a.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert JobFolder.open("~/job").path == tmp_path / "job"
    assert engine.resume("~/job").path == tmp_path / "a.mp4"
