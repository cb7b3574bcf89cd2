"""Jobs that are stopped and go on: the same bits, or an error that says why not."""

import dataclasses
import errno
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from lora_cases import in_peft_names, random_lora, saved
from PIL import Image

from isoframe.engine import ConfigError, Engine, EngineConfig, InputError, JobEvent, LoraStrength, Request
from isoframe.engine.events import Event, PhaseEvent, StepEvent
from isoframe.engine.files import exclusive_lock
from isoframe.engine.jobs import section_files
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.jobs.seals import seal, unseal
from isoframe.engine.media.video import read_video_info
from isoframe.engine.request.config import ORDERS
from isoframe.engine.sampling.history import JobNoise, SampledSections

NUM_SECTIONS = 4


class StoppedError(Exception):
    """What a test stops a job with."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu"))


@pytest.fixture(scope="module")
def request_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Request]:
    """A job of 4 short sections: 17 frames."""
    path = tmp_path_factory.mktemp("image") / "start.png"
    Image.new("RGB", (70, 64), (200, 60, 40)).save(path)

    def make(**changes: Any) -> Request:
        fields: dict[str, Any] = {
            "image": path, "prompt": "a red circle moves right", "seconds": 16 / 30, "num_steps": 2,
            "latent_window_size": 1, "order": "inverted", "seed": 5,
        }  # fmt: skip
        return Request(**fields | changes)

    return make


@pytest.fixture(scope="module")
def straight(
    engine: Engine, request_of: Callable[..., Request], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The file of an uninterrupted job, by order."""
    folder = tmp_path_factory.mktemp("straight")
    return {
        order: engine.render(request_of(order=order), folder / f"{order}.mp4").path.read_bytes()
        for order in ORDERS
    }


def stop_at(is_there: Callable[[Event], bool], events: list[Event] | None = None) -> Callable[[Event], None]:
    """A listener that stops the job at one event."""
    was_there = False

    def on_event(event: Event) -> None:
        nonlocal was_there
        if events is not None:
            events.append(event)
        if not was_there and is_there(event):
            was_there = True
            raise StoppedError

    return on_event


def at_step(section: int, step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, StepEvent) and (event.section, event.step) == (section, step)


def at_phase(name: str, times: int = 1) -> Callable[[Event], bool]:
    seen = []

    def is_there(event: Event) -> bool:
        if isinstance(event, PhaseEvent) and event.phase == name:
            seen.append(event)
        return len(seen) == times

    return is_there


def stopped(engine: Engine, request: Request, folder: Path, is_there: Callable[[Event], bool]) -> Path:
    """The folder of a job that was stopped; its output is video.mp4 beside it."""
    job_dir = folder / "job"
    with pytest.raises(StoppedError):
        engine.render(request, folder / "video.mp4", job_dir=job_dir, on_event=stop_at(is_there))
    return job_dir


def sampled_sections(events: list[Event]) -> set[int]:
    return {event.section for event in events if isinstance(event, StepEvent)}


def test_noise_of_a_redo_takes_its_place_in_the_sequence_of_the_job() -> None:
    shape = (1, 2, 1, 3, 3)
    straight = JobNoise(5, shape, SampledSections())
    noises = [straight.draw() for _ in range(2)]
    state = straight.state()
    noises += [straight.draw() for _ in range(2)]
    redone = JobNoise(5, shape, SampledSections(num_sections=2, generator_state=state, next_seed=77))
    own = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(77))
    assert torch.equal(redone.draw(), own)
    assert torch.equal(redone.draw(), noises[3])


def test_a_job_with_a_lora_goes_on_and_another_lora_is_refused(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = dict(itertools.islice(engine._denoiser.transformer.layer_shapes.items(), 40))
    for seed, name in enumerate(("style", "other")):
        saved(tmp_path / f"{name}.safetensors", in_peft_names(random_lora(layers, seed=seed)))
    # Found by a relative name, and from another folder later.
    monkeypatch.chdir(tmp_path)
    uses = {
        name: (LoraStrength(source=f"{name}.safetensors", strength=0.3, sections=(1, 2)),)
        for name in ("style", "other")
    }
    whole = engine.render(request_of(loras=uses["style"]), tmp_path / "whole.mp4").path.read_bytes()
    job_dir = stopped(engine, request_of(loras=uses["style"]), tmp_path, at_step(2, 1))
    with pytest.raises(InputError, match="holds another job, with loras"):
        engine.render(request_of(loras=uses["other"]), tmp_path / "new.mp4", job_dir=job_dir)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert engine.resume(job_dir).path.read_bytes() == whole


POINTS = {
    "before-any-step": lambda: at_phase("prepare"),
    "in-the-first-section": lambda: at_step(0, 0),
    "before-a-decode": lambda: at_phase("decode", 2),
    "before-an-encode": lambda: at_phase("encode", 2),
    "in-the-third-section": lambda: at_step(2, 1),
    "before-the-last-decode": lambda: at_phase("decode", NUM_SECTIONS),
    "before-the-file": lambda: at_phase("write"),
}


@pytest.mark.parametrize(
    ("point", "order"),
    [
        *((point, "inverted") for point in POINTS),
        ("before-an-encode", "forward"),
        ("in-the-third-section", "forward"),
    ],
)
def test_a_stopped_job_goes_on_bit_for_bit(
    engine: Engine,
    request_of: Callable[..., Request],
    straight: dict[str, bytes],
    tmp_path: Path,
    order: str,
    point: str,
) -> None:
    job_dir = stopped(engine, request_of(order=order), tmp_path, POINTS[point]())
    assert engine.resume(job_dir).path.read_bytes() == straight[order]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job", "video.mp4"]
    assert JobFolder.open(job_dir).status().is_done


def test_a_job_that_keeps_its_sections_makes_the_same_file(
    engine: Engine, request_of: Callable[..., Request], straight: dict[str, bytes], tmp_path: Path
) -> None:
    video = engine.render(request_of(), tmp_path / "video.mp4", job_dir=tmp_path / "job")
    assert video.path.read_bytes() == straight["inverted"]


def test_finished_sections_are_neither_sampled_nor_decoded_again(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(2, 0))
    events: list[Event] = []
    engine.resume(job_dir, on_event=events.append)
    assert sampled_sections(events) == {2, 3}
    assert [event.phase for event in events if isinstance(event, PhaseEvent)].count("decode") == 2
    job = next(event for event in events if isinstance(event, JobEvent))
    assert (job.num_finished_sections, job.job_dir) == (2, job_dir)


def test_the_same_request_continues_its_folder(
    engine: Engine, request_of: Callable[..., Request], straight: dict[str, bytes], tmp_path: Path
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(2, 0))
    events: list[Event] = []
    video = engine.render(request_of(), tmp_path / "other name.mp4", job_dir=job_dir, on_event=events.append)
    assert video.path.read_bytes() == straight["inverted"]
    assert sampled_sections(events) == {2, 3}


def test_the_image_may_be_gone(
    engine: Engine, request_of: Callable[..., Request], straight: dict[str, bytes], tmp_path: Path
) -> None:
    image = shutil.copy(request_of().image, tmp_path / "start.png")
    job_dir = stopped(engine, request_of(image=image), tmp_path, at_step(1, 0))
    Path(image).unlink()
    assert engine.resume(job_dir).path.read_bytes() == straight["inverted"]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"prompt": "a blue square"}, "prompt 'a red circle moves right' instead of 'a blue square'"),
        ({"seed": 6}, "seed 5 instead of 6"),
        ({"num_steps": 3}, "num_steps 2 instead of 3"),
        ({"crf": 20}, "crf 16 instead of 20"),
        ({"size": (64, 96)}, r"size \[64, 64\] instead of \[64, 96\]"),
    ],
)
def test_a_folder_of_another_request_is_refused_and_stays(
    engine: Engine,
    request_of: Callable[..., Request],
    tmp_path: Path,
    changes: dict[str, Any],
    difference: str,
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(1, 0))
    before = {path.name: path.read_bytes() for path in job_dir.iterdir()}
    with pytest.raises(InputError, match=f"holds another job, with .*{difference}.*isoframe resume"):
        engine.render(request_of(**changes), tmp_path / "new.mp4", job_dir=job_dir)
    assert {path.name: path.read_bytes() for path in job_dir.iterdir()} == before


def test_a_folder_of_another_model_is_refused(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(1, 0))
    other = Engine.load("demo", config=dataclasses.replace(engine.config, precision="bf16"))
    with pytest.raises(InputError, match="precision 'fp32' instead of 'bf16'"):
        other.resume(job_dir)


def test_folders_that_are_no_jobs_are_refused_before_any_work(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    events: list[Event] = []
    with pytest.raises(InputError, match="holds other files"):
        engine.render(request_of(), tmp_path / "v.mp4", job_dir=tmp_path / "mine", on_event=events.append)
    with pytest.raises(InputError, match="is no job folder"):
        engine.resume(tmp_path / "mine")
    with pytest.raises(InputError, match="is a file, not a folder"):
        engine.render(request_of(), tmp_path / "v.mp4", job_dir=tmp_path / "mine" / "notes.txt")
    assert events == []
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "must have version 2, got 99"),
        ({"request": None}, "is damaged or of another version"),
        ({"sections": [[0, 0]]}, "plans its sections in another way"),
        ({"config": {"unknown": 1}}, "is damaged or of another version"),
    ],
)
def test_a_record_of_another_version_is_refused(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(0, 0))
    record = job_dir / "job.json"
    record.write_text(seal(unseal(record.read_text())[0] | change))
    with pytest.raises(InputError, match=message):
        engine.resume(job_dir)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "request.prompt": lambda values: values["request"].update(prompt="a blue star"),
    "request.crf": lambda values: values["request"].update(crf=30),
    "request.posterior": lambda values: values["request"].update(posterior="mode"),
    "sampling.seed": lambda values: values["sampling"].update(seed=6),
    "output": lambda values: values.update(output="/tmp/other.mp4"),
    "unknown": lambda values: values.update(unknown=1),
    "vae_tile": lambda values: values.pop("vae_tile"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_record_is_refused_by_the_name_of_what_changed(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, name: str
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(0, 0))
    record = job_dir / "job.json"
    values = json.loads(record.read_text())
    EDITS[name](values)
    record.write_text(json.dumps(values))
    with pytest.raises(InputError, match=rf"changed since it was written: {name}; .* --accept-changes"):
        engine.resume(job_dir)


def test_an_edited_record_that_is_accepted_makes_its_video_which_tells_it(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(2, 0))
    record = job_dir / "job.json"
    record.write_text(record.read_text().replace("a red circle moves right", "a blue star"))
    folder = JobFolder.open(job_dir, accepts_changes=True)
    assert folder.record.request.prompt == "a blue star"
    metadata = engine.resume(job_dir).metadata
    assert metadata["accepted_changes"] == ["request.prompt", "metadata.request"]
    assert metadata["request"]["prompt"] == "a blue star"  # type: ignore[index]  # of any JSON


def test_keys_of_a_later_minor_version_are_kept(
    engine: Engine, request_of: Callable[..., Request], straight: dict[str, bytes], tmp_path: Path
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(1, 0))
    record = job_dir / "job.json"
    record.write_text(seal(unseal(record.read_text())[0] | {"minor_version": 7, "mood": {"a": [1]}}))
    assert json.loads(JobFolder.open(job_dir).record.to_json(job_dir))["mood"] == {"a": [1]}
    copy = JobFolder.open(job_dir).copy(tmp_path / "copy", tmp_path / "copy.mp4")
    assert json.loads((copy.path / "job.json").read_text())["mood"] == {"a": [1]}
    assert engine.resume(job_dir).path.read_bytes() == straight["inverted"]


@pytest.mark.parametrize(
    "change",
    [
        {"token": "*"},
        {"token": "../../a"},
        {"output": "/home/somebody/.bashrc"},
        {"num_frames": 1e308},
        {"num_frames": "17"},
        {"num_leading": None},
        {"metadata": []},
        {"sampling": {"num_sections": 10**9}},
        {"images": 5},
        {"components": [1]},
    ],
)
def test_a_crafted_record_is_refused_at_once(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, change: dict[str, Any]
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(0, 0))
    record = job_dir / "job.json"
    values, _ = unseal(record.read_text())
    for name, value in change.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    record.write_text(seal(values))
    with pytest.raises(InputError, match="is damaged or of another version"):
        JobFolder.open(job_dir)


def test_a_note_of_a_partial_file_may_only_name_such_a_file(
    engine: Engine, request_of: Callable[..., Request], straight: dict[str, bytes], tmp_path: Path
) -> None:
    others = [
        tmp_path / "other.mp4",
        tmp_path / "deep" / "video.partial.mp4",
        tmp_path / "video.partial-x.mp4",
    ]
    job_dir = stopped(engine, request_of(), tmp_path, at_step(3, 0))
    own = JobFolder.open(job_dir).partial()
    assert own is not None
    assert own.exists()
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"of somebody")
        (job_dir / "partial.json").write_text(json.dumps({"video": str(other)}))
        assert JobFolder.open(job_dir).partial() != other
    engine.resume(job_dir)
    assert all(other.read_bytes() == b"of somebody" for other in others)


def test_a_cache_that_moved_has_all_its_jobs(
    request_of: Callable[..., Request], straight: dict[str, bytes], tmp_path: Path
) -> None:
    config = EngineConfig(cache_dir=tmp_path / "cache", device="cpu")
    job_dir = tmp_path / "cache" / "jobs" / "mine"
    with Engine.load("demo", config=config) as engine, pytest.raises(StoppedError):
        engine.render(request_of(), job_dir / "video.mp4", job_dir=job_dir, on_event=stop_at(at_step(2, 0)))
    moved = (tmp_path / "cache").rename(tmp_path / "moved") / "jobs" / "mine"
    record = JobFolder.open(moved).record
    assert record.output == moved / "video.mp4"
    assert record.source.config.cache_dir == str(tmp_path / "moved")
    with Engine.load("demo", config=record.source.config) as engine:
        assert engine.resume(moved).path.read_bytes() == straight["inverted"]
    assert not (tmp_path / "cache").exists()


def test_a_folder_in_use_is_refused(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(1, 0))
    with exclusive_lock(job_dir / "lock", "taken"):
        assert JobFolder.open(job_dir).status().is_running
        with pytest.raises(InputError, match="in use by another process"):
            engine.resume(job_dir)
    assert not JobFolder.open(job_dir).status().is_running


def test_a_disk_without_room_for_the_sections_is_refused_before_any_work(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    events: list[Event] = []
    with pytest.raises(InputError, match=r"needs \d+ MiB for 4 sections and its disk has 0 MiB free"):
        engine.render(request_of(), tmp_path / "v.mp4", job_dir=tmp_path / "job", on_event=events.append)
    assert events == []


def test_a_read_only_folder_is_refused_before_any_work(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    events: list[Event] = []
    with pytest.raises(InputError, match="Read-only file system; choose another folder"):
        engine.render(request_of(), tmp_path / "v.mp4", job_dir=tmp_path / "job", on_event=events.append)
    assert events == []


@pytest.mark.parametrize("point", ["write", "fsync", "replace"])
def test_a_disk_that_fills_up_costs_one_section(
    engine: Engine,
    request_of: Callable[..., Request],
    straight: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
) -> None:
    num_writes = 0
    write = section_files.write_durably

    def fail_at_the_fourth(path: Path, content: bytes) -> None:
        nonlocal num_writes
        num_writes += 1
        if num_writes == 4:
            with monkeypatch.context() as disk:
                disk.setattr(*BROKEN_DISKS[point])
                write(path, content)
        write(path, content)

    monkeypatch.setattr(section_files, "write_durably", fail_at_the_fourth)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        engine.render(request_of(), tmp_path / "video.mp4", job_dir=tmp_path / "job")
    assert not list((tmp_path / "job").glob("*.tmp"))
    monkeypatch.undo()
    assert engine.resume(tmp_path / "job").path.read_bytes() == straight["inverted"]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


BROKEN_DISKS = {
    "write": ("pathlib.Path.open", full_disk),
    "fsync": ("os.fsync", full_disk),
    "replace": ("os.replace", full_disk),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("section_0001.safetensors", "gone"),
        ("section_0001.safetensors", "truncated"),
        ("section_0001.safetensors", "flipped"),
        ("section_0001.json", "truncated"),
        ("segments.bin", "flipped"),
        ("segments.bin", "gone"),
    ],
)
def test_damaged_sections_are_made_again(
    engine: Engine,
    request_of: Callable[..., Request],
    straight: dict[str, bytes],
    tmp_path: Path,
    name: str,
    damage: str,
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(3, 0))
    content = (job_dir / name).read_bytes()
    if damage == "gone":
        (job_dir / name).unlink()
    elif damage == "truncated":
        (job_dir / name).write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        (job_dir / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert engine.resume(job_dir).path.read_bytes() == straight["inverted"]


def latents(job_dir: Path, section: int) -> torch.Tensor:
    return safetensors.torch.load_file(job_dir / f"section_{section:04d}.safetensors")["latents"]


def test_redo_with_a_seed_keeps_the_sections_before_it(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    engine.render(request_of(), tmp_path / "video.mp4", job_dir=tmp_path / "job")
    before = [latents(tmp_path / "job", index) for index in range(NUM_SECTIONS)]
    JobFolder.open(tmp_path / "job").redo(2, seed=77)
    events: list[Event] = []
    video = engine.resume(tmp_path / "job", tmp_path / "new.mp4", on_event=events.append)
    after = [latents(tmp_path / "job", index) for index in range(NUM_SECTIONS)]
    assert sampled_sections(events) == {2, 3}
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False]
    assert video.metadata["redos"] == [{"section": 2, "seed": 77, "prompt": None}]


def test_redo_of_the_first_section_with_the_job_seed_is_the_job_again(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    """Its own noise is the first of that seed; the others must continue the sequence, not start it."""
    engine.render(request_of(), tmp_path / "video.mp4", job_dir=tmp_path / "job")
    before = [latents(tmp_path / "job", index) for index in range(NUM_SECTIONS)]
    JobFolder.open(tmp_path / "job").redo(0, seed=5)
    events: list[Event] = []
    engine.resume(tmp_path / "job", tmp_path / "new.mp4", on_event=events.append)
    assert sampled_sections(events) == {0, 1, 2, 3}
    assert all(torch.equal(section, latents(tmp_path / "job", index)) for index, section in enumerate(before))


def test_a_stopped_redo_goes_on_bit_for_bit(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        engine.render(request_of(), tmp_path / f"{name}.mp4", job_dir=tmp_path / name)
        JobFolder.open(tmp_path / name).redo(1, seed=77, prompt="a blue square spins")
    whole = engine.resume(tmp_path / "a", overwrite=True)
    with pytest.raises(StoppedError):
        engine.resume(tmp_path / "b", overwrite=True, on_event=stop_at(at_step(2, 1)))
    assert engine.resume(tmp_path / "b", overwrite=True).path.read_bytes() == whole.path.read_bytes()
    assert read_video_info(whole.path).metadata["redos"] == [
        {"section": 1, "seed": 77, "prompt": "a blue square spins"}
    ]


def test_redo_killed_between_its_writes_uses_no_old_section(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.render(request_of(), tmp_path / "video.mp4", job_dir=tmp_path / "job")
    monkeypatch.setattr(section_files.SectionFiles, "remove_from", lambda *_: None)
    JobFolder.open(tmp_path / "job").redo(2, seed=77)
    monkeypatch.undo()
    assert JobFolder.open(tmp_path / "job").status().num_finished_sections == 2
    events: list[Event] = []
    engine.resume(tmp_path / "job", overwrite=True, on_event=events.append)
    assert sampled_sections(events) == {2, 3}


def test_redo_forgets_later_redos_and_keeps_what_is_not_given_anew(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(3, 0))
    for section, changes in [(1, {"seed": 1}), (2, {"prompt": "later"}), (1, {"prompt": "now"})]:
        JobFolder.open(job_dir).redo(section, **changes)
    assert [dataclasses.astuple(redo) for redo in JobFolder.open(job_dir).redos] == [(1, 1, "now")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"section": 4, "seed": 1}, "section must be from 1 to 4, got 5"),
        ({"section": 0}, "another seed or prompt"),
        ({"section": 0, "seed": -1}, "seed must be"),
    ],
)
def test_a_redo_that_means_nothing_is_refused(
    engine: Engine,
    request_of: Callable[..., Request],
    tmp_path: Path,
    arguments: dict[str, Any],
    message: str,
) -> None:
    job_dir = stopped(engine, request_of(), tmp_path, at_step(1, 0))
    with pytest.raises(ConfigError, match=message):
        JobFolder.open(job_dir).redo(**arguments)
    assert JobFolder.open(job_dir).status().num_finished_sections == 1


def test_a_finished_job_keeps_its_own_video_and_no_other(
    engine: Engine, request_of: Callable[..., Request], straight: dict[str, bytes], tmp_path: Path
) -> None:
    engine.render(request_of(), tmp_path / "video.mp4", job_dir=tmp_path / "job")
    assert engine.resume(tmp_path / "job").path.read_bytes() == straight["inverted"]
    (tmp_path / "video.mp4").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        engine.resume(tmp_path / "job")
    assert (tmp_path / "video.mp4").read_bytes() == b"mine"
