"""What the first version wrote is still read, finished, made again and shown.

Its UniPC had another rounding: what is made anew is the same to the eye, and says why it is not bit for bit.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from safetensors.torch import load_file
from video_server import KeptWorkers

from isoframe.engine import Engine, EngineConfig, Event, GuideImage, JobEvent, JobFolder, LoraStrength
from isoframe.engine.interfaces.app.form import Form
from isoframe.engine.interfaces.commands.info import describe_video
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.jobs.record import JobRecord
from isoframe.engine.jobs.seals import unseal
from isoframe.engine.media.video import read_video_info
from isoframe.engine.reproduction import Recipe, reproduce
from isoframe.engine.weights.store import open_store

KEPT = Path(__file__).parents[1] / "fixtures" / "first_version"
EXPECTED: dict[str, dict[str, str]] = json.loads((KEPT / "expected.json").read_text())
CHANGE = "sampler revision 1 then, 2 now: not the same bit for bit"
JOBS = ("inverted", "forward", "schedule", "lora", "redone")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    config = EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu")
    with Engine.load("demo", config=config) as engine:
        yield engine


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The files where they can be written, with their paths."""
    folder = shutil.copytree(KEPT, tmp_path / "kept")
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text().replace("/tmp/isoframe-fixtures-0.1.0", str(folder)))
    return folder


def digest(parts: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def frames(path: Path) -> Iterator[bytes]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24").tobytes()


def hashes(job: Path, video: Path) -> dict[str, str]:
    """Of the latents of a job in the order of the video, and of the frames of its file."""
    plans = json.loads((job / "job.json").read_text())["sections"]
    places = sorted(range(len(plans)), key=lambda index: plans[index][0])
    latents = [load_file(job / f"section_{index:04d}.safetensors")["latents"] for index in places]
    joined = torch.cat(latents, dim=2).contiguous()
    return {
        "made_latents": hashlib.sha256(joined.numpy().tobytes()).hexdigest(),
        "mp4_frames": digest(frames(video)),
        "mp4_num_frames": str(sum(1 for _ in frames(video))),
    }


@pytest.mark.parametrize("name", JOBS)
def test_a_record_is_read_and_written_as_it_was(kept: Path, name: str) -> None:
    folder = JobFolder.open(kept / "jobs" / name)
    status = folder.status()
    assert (status.is_done, status.num_finished_sections) == (True, status.num_sections)
    written = json.loads((folder.path / "job.json").read_text())
    text = folder.record.to_json(folder.path)
    again, changed = unseal(text)
    assert changed == ()
    # The cache that the jobs are in is found from them, and a job's own image may have an unusual shape.
    assert again == written | {
        "request": written["request"] | {"force": True},
        "config": written["config"] | {"cache_dir": again["config"]["cache_dir"]},
        "minor_version": 1,
        "output": again["output"],
    }
    for mine, theirs in ((again, written), (again["config"], written["config"])):
        for name in {"output", "cache_dir"} & mine.keys():
            assert Path(os.path.normpath(folder.path / mine[name])) == Path(theirs[name])
    assert JobRecord.from_json(text, folder.path, "job.json").request == folder.record.request


def test_what_a_record_holds_comes_back_as_what_it_was(kept: Path) -> None:
    request = JobFolder.open(kept / "jobs" / "lora").record.request
    assert request.loras == (
        LoraStrength(source=str(kept / "style-small.safetensors"), strength=0.8, sections=(0, 1)),
    )
    assert request.size == (64, 64)
    assert request.end_image == kept / "jobs" / "lora" / "end_image.png"
    forward = JobFolder.open(kept / "jobs" / "forward").record
    image = kept / "jobs" / "forward" / "guide_image_0.png"
    assert forward.request.guide_images == (GuideImage(image=image, time=0.5),)
    assert forward.sampling.guide_places == (2,)
    assert JobFolder.open(kept / "jobs" / "schedule").record.sampling.untrained_schedule is not None


def test_a_stopped_job_goes_on_and_says_that_two_revisions_made_it(engine: Engine, kept: Path) -> None:
    events: list[Event] = []
    video = engine.resume(kept / "jobs" / "stopped", on_event=events.append)
    assert hashes(kept / "jobs" / "stopped", video.path).keys() == EXPECTED["stopped"].keys()
    assert str(video.num_frames) == EXPECTED["stopped"]["mp4_num_frames"]
    assert video.metadata["numerics_changes"] == [CHANGE]
    assert CHANGE in next(event.notes for event in events if isinstance(event, JobEvent))


@pytest.mark.parametrize("name", JOBS)
def test_a_redo_makes_its_section_again(engine: Engine, kept: Path, name: str) -> None:
    job = kept / "jobs" / name
    JobFolder.open(job).redo(1, seed=5)
    video = engine.resume(job, overwrite=True)
    assert str(video.num_frames) == EXPECTED[f"{name} after redo --section 2 --seed 5"]["mp4_num_frames"]
    assert video.metadata["numerics_changes"] == [CHANGE]


@pytest.mark.parametrize("name", JOBS)
def test_a_video_is_reproduced_from_what_it_says(engine: Engine, kept: Path, name: str) -> None:
    recipe = Recipe.read(kept / f"{name}.mp4")
    made = reproduce(engine, recipe, recipe.request(None, kept), kept / "again.mp4")
    assert made.psnr >= 45
    assert (made.num_frames, made.differences[-1]) == (int(EXPECTED[name]["mp4_num_frames"]), CHANGE)
    assert digest(frames(kept / f"{name}.mp4")) == EXPECTED[name]["mp4_frames"]


@pytest.mark.parametrize("name", JOBS)
def test_info_tells_how_a_video_was_made(kept: Path, name: str) -> None:
    facts: dict[str, Any] = describe_video(str(kept / f"{name}.mp4"))
    assert str(facts["num_frames"]) == EXPECTED[name]["mp4_num_frames"]
    assert facts["metadata"]["request"]["seed"] == facts["metadata"]["seed"] == 7


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora", {"step_cache": "magcache", "num_steps": 8, "lora_strength": 0.8, "end_image_strength": 1.0}),
        ("forward", {"order": "forward", "guide_times": "0.5", "latent_window_size": 2}),
    ],
)
def test_the_app_fills_in_what_a_job_was_made_with(kept: Path, name: str, expected: dict[str, Any]) -> None:
    form = Form.of_request(JobFolder.open(kept / "jobs" / name).record.request)
    assert {field: getattr(form, field) for field in expected} == expected


def test_a_service_lists_its_videos_and_finishes_the_paused_one(engine: Engine, kept: Path) -> None:
    done, paused = EXPECTED["service"]["done"], EXPECTED["service"]["paused"]
    with VideoService(KeptWorkers(engine), kept / "service") as service:
        assert {status.id: status.state for status in service.page(None, 10)} == {
            done: "done",
            paused: "paused",
        }
        jobs = kept / "service" / "jobs"
        assert hashes(jobs / done, service.video_path(done)) == EXPECTED["service done"]
        service.resume(paused)
        assert service.wait(paused).state == "done"
        made = read_video_info(service.video_path(paused))
        assert str(made.num_frames) == EXPECTED["service paused"]["mp4_num_frames"]
        assert made.metadata["numerics_changes"] == [CHANGE]


def test_a_store_is_whole() -> None:
    store = open_store(KEPT / "store")
    store.verify()
    assert store.weight_format.name == "int8"
