"""Whole jobs with the built-in model: frames, files, failures."""

import errno
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import safetensors
import torch
from PIL import Image
from tiny_models import saved_model

from isoframe.engine import (
    CheckpointError,
    ConfigError,
    DeviceError,
    Engine,
    EngineConfig,
    Event,
    FileEvent,
    InputError,
    JobEvent,
    NumericalError,
    PartialEvent,
    PhaseEvent,
    Request,
    SectionEvent,
    StepEvent,
)
from isoframe.engine.companions.vae import VideoVAE
from isoframe.engine.generation import loaded_model
from isoframe.engine.media import video
from isoframe.engine.media.segments import Segment, SegmentSpool
from isoframe.engine.media.video import read_video_info
from isoframe.engine.request.config import ORDERS
from isoframe.kernels.launching import launch as launching


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "start.png"
    Image.new("RGB", (64, 64), (200, 60, 40)).save(path)
    return path


@pytest.fixture
def make_request(image: Path) -> Callable[..., Request]:
    """A job of 3 short sections: 25 frames."""

    def make(**changes: object) -> Request:
        fields = {"image": image, "seconds": 0.8, "num_steps": 2, "latent_window_size": 2, "seed": 5}
        return Request(prompt="a red circle moves right", **{**fields, **changes})

    return make


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("order", ORDERS)
def test_sections_join_to_the_whole_video(
    engine: Engine, make_request: Callable[..., Request], order: str
) -> None:
    sections = list(engine.generate(make_request(order=order)))
    assert [section.index for section in sections] == [0, 1, 2]
    covered = sorted(
        place
        for section in sections
        for place in range(section.first_frame, section.first_frame + len(section.frames))
    )
    assert covered == list(range(25))
    for section in sections:
        assert section.frames.dtype == torch.uint8
        assert section.start_seconds == pytest.approx(section.first_frame / 30)
        assert section.latents.shape == (1, 16, 2, 8, 8)
        assert len(section.preview_frames) == (5 if section.index < 2 else 0)
        assert section.timings.keys() == {"denoise", "decode"}
        assert section.memory["rss"] > 0


def test_rendered_file_holds_the_frames_and_says_how_it_was_made(
    engine: Engine, make_request: Callable[..., Request], tmp_path: Path
) -> None:
    request = make_request(crf=0)
    frames = torch.cat(
        [section.frames for section in sorted(engine.generate(request), key=lambda s: s.first_frame)]
    )
    result = engine.render(request, tmp_path / "new folder" / "out.mp4")
    assert (result.num_frames, result.fps, result.width, result.height) == (25, 30, 64, 64)
    decoded = decode(result.path)
    # Lossless for H.264, but chroma is stored at half resolution.
    assert np.abs(decoded.astype(int) - frames.numpy().astype(int)).mean() < 3
    metadata = json.loads(json.dumps(read_video_info(result.path).metadata))
    assert metadata["seed"] == 5
    assert metadata["model"] == "demo"
    assert len(str(metadata["model_hash"])) == 64
    assert metadata["request"]["prompt"] == "a red circle moves right"
    # A video is passed on: it does not tell where its maker keeps images.
    assert metadata["request"]["image"] == "start.png"
    assert metadata["versions"]["torch"] == torch.__version__


def test_same_seed_same_video_other_seed_other_video(
    engine: Engine, make_request: Callable[..., Request]
) -> None:
    def latents(seed: int, source: Engine) -> torch.Tensor:
        return torch.cat([section.latents for section in source.generate(make_request(seed=seed))])

    once = latents(5, engine)
    other_engine = Engine.load("demo", config=engine.config)
    assert torch.equal(once, latents(5, other_engine))
    assert not torch.equal(once, latents(6, engine))


def test_two_jobs_of_one_engine_do_not_disturb_each_other(
    engine: Engine, make_request: Callable[..., Request]
) -> None:
    alone = [section.latents for section in engine.generate(make_request(seed=1))]
    jobs = [engine.generate(make_request(seed=seed)) for seed in (1, 2)]
    together = [section.latents for section, _ in zip(*jobs, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_events_tell_the_course_of_a_job(
    engine: Engine, make_request: Callable[..., Request], tmp_path: Path
) -> None:
    events: list[Event] = []
    result = engine.render(make_request(), tmp_path / "out.mp4", on_event=events.append)
    phases = [event.phase for event in events if isinstance(event, PhaseEvent)]
    sections = ["pack", "denoise", "decode", "encode"] * 3
    assert phases == ["text", "image", "prepare", *sections, "write"]
    # 0.8 s at 30 frames a second are 3 sections of 8 frames; the image is 64 x 64.
    assert events[0] == JobEvent(
        order="inverted", num_sections=3, num_frames=25, fps=30, seconds=25 / 30, requested_seconds=0.8,
        height=64, width=64, image_height=64, image_width=64,
    )  # fmt: skip
    steps = [event for event in events if isinstance(event, StepEvent)]
    assert [(event.section, event.step) for event in steps] == [(n, s) for n in range(3) for s in range(2)]
    # The end of the video comes first.
    assert [event.first_latent_frame for event in steps[::2]] == [5, 3, 1]
    finals = [event.num_final_frames for event in events if isinstance(event, SectionEvent)]
    assert finals == [0, 8, 25]
    assert events[-1] == FileEvent(path=result.path)


def test_step_cache_reports_what_it_skips(engine: Engine, make_request: Callable[..., Request]) -> None:
    events: list[Event] = []
    for _ in engine.generate(make_request(num_steps=12, step_cache="teacache"), on_event=events.append):
        pass
    computed = [event.is_computed for event in events if isinstance(event, StepEvent)]
    assert computed[0]
    assert computed[11]
    assert not all(computed)


def num_frames_alive() -> int:
    """Frames of 64 x 64 pixels in all tensors of the process; views of one storage count once."""
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        # By type: asking some objects for their class warns.
        if not issubclass(type(thing), torch.Tensor) or 3 not in thing.shape:
            continue
        if (64, 64) in (thing.shape[-2:], thing.shape[-3:-1]):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes() // (3 * 64 * 64 * thing.element_size())
    return sum(storages.values())


@pytest.mark.parametrize("order", ORDERS)
def test_at_most_twelve_windows_of_frames_are_in_memory(
    engine: Engine,
    make_request: Callable[..., Request],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    order: str,
) -> None:
    decode, before, counts = VideoVAE.decode, num_frames_alive(), []

    def counting(self: VideoVAE, latents: torch.Tensor) -> torch.Tensor:
        frames = decode(self, latents)
        counts.append(num_frames_alive() - before)
        return frames

    monkeypatch.setattr(VideoVAE, "decode", counting)
    engine.render(make_request(seconds=1.6, num_steps=1, order=order), tmp_path / "out.mp4")
    assert len(counts) == 6
    # 8w + 1 just decoded at most, and the 4w - 3 held for the cross-fade.
    assert max(counts) <= 12 * 2


def interrupt_in_last_section(error: BaseException) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if isinstance(event, StepEvent) and event.section == 2 and event.step == 1:
            raise error

    return on_event


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of luck")], ids=["ctrl-c", "error"])
def test_what_is_finished_stays_playable(
    engine: Engine, make_request: Callable[..., Request], tmp_path: Path, error: BaseException
) -> None:
    folder = tmp_path / "out"
    with pytest.raises(type(error)) as caught:
        engine.render(make_request(), folder / "video.mp4", on_event=interrupt_in_last_section(error))
    assert [path.name for path in folder.iterdir()] == ["video.partial.mp4"]
    # 8 final frames and the 5 that the next section would have changed.
    assert len(decode(folder / "video.partial.mp4")) == 13
    assert caught.value.__notes__ == [f"13 of 25 frames are kept in {folder / 'video.partial.mp4'}"]


def test_every_job_that_stops_early_leaves_a_file_of_its_own(
    engine: Engine, make_request: Callable[..., Request], tmp_path: Path
) -> None:
    (tmp_path / "video.partial.mp4").write_bytes(b"of an earlier job")
    for number in (2, 3):
        events: list[Event] = []

        def stop(event: Event, events: list[Event] = events) -> None:
            events.append(event)
            interrupt_in_last_section(KeyboardInterrupt())(event)

        with pytest.raises(KeyboardInterrupt):
            engine.render(make_request(), tmp_path / "video.mp4", on_event=stop)
        path = tmp_path / f"video.partial-{number}.mp4"
        assert events[-1] == PartialEvent(path=path, num_frames=13, num_video_frames=25)
        assert len(decode(path)) == 13
    assert (tmp_path / "video.partial.mp4").read_bytes() == b"of an earlier job"
    engine.render(make_request(), tmp_path / "video.mp4")
    assert len(list(tmp_path.glob("*.partial*.mp4"))) == 3


def test_frames_of_an_earlier_job_stay_until_new_ones_come(
    engine: Engine, make_request: Callable[..., Request], tmp_path: Path
) -> None:
    old = tmp_path / "png" / "frame_00000.png"
    old.parent.mkdir()
    old.write_bytes(b"old")

    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    options = {"overwrite": True, "png_dir": old.parent}
    with pytest.raises(KeyboardInterrupt):
        engine.render(make_request(), tmp_path / "video.mp4", on_event=stop, **options)
    assert old.read_bytes() == b"old"
    engine.render(make_request(), tmp_path / "video.mp4", **options)
    assert len(list(old.parent.iterdir())) == 25
    assert old.read_bytes() != b"old"


def test_a_part_that_cannot_be_kept_is_told_in_a_note(
    engine: Engine, make_request: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(video, "write_mp4", full)
    with pytest.raises(KeyboardInterrupt) as caught:
        engine.render(
            make_request(),
            tmp_path / "video.mp4",
            on_event=interrupt_in_last_section(KeyboardInterrupt()),
        )
    assert caught.value.__notes__[0].startswith("the finished part could not be kept: cannot write")


def test_nothing_is_left_when_no_section_was_finished(
    engine: Engine, make_request: Callable[..., Request], tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    folders = {"png_dir": tmp_path / "png", "preview_dir": tmp_path / "preview"}
    with pytest.raises(KeyboardInterrupt):
        engine.render(make_request(), tmp_path / "out" / "video.mp4", on_event=stop, **folders)
    assert list((tmp_path / "out").iterdir()) == []
    assert [folder for folder in folders.values() if folder.exists()] == []


@pytest.fixture
def broken_engine(tmp_path: Path) -> Engine:
    engine = Engine.load("demo", config=EngineConfig(cache_dir=tmp_path / "cache", device="cpu"))
    engine._denoiser.transformer.proj_out.bias.fill_(float("nan"))
    return engine


def test_non_finite_latents_stop_the_job_and_name_section_and_step(
    broken_engine: Engine, make_request: Callable[..., Request]
) -> None:
    with pytest.raises(NumericalError, match="section 1 became NaN or infinite at step 1") as caught:
        list(broken_engine.generate(make_request()))
    assert (caught.value.section, caught.value.step) == (0, 0)


def test_a_vae_that_overflows_is_blamed_before_any_step(
    engine: Engine, make_request: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoVAE, "encode", lambda *_, **__: torch.full((1, 16, 1, 8, 8), torch.inf))
    with pytest.raises(CheckpointError, match="the VAE of demo encodes the image to NaN or infinity"):
        next(engine.generate(make_request()))


def test_a_full_disk_in_the_last_section_keeps_the_others(
    engine: Engine, make_request: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, num_segments = SegmentSpool.append, 0

    def fail_at_the_second(self: SegmentSpool, *args: Any) -> Segment:
        nonlocal num_segments
        num_segments += 1
        if num_segments == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(self, *args)

    monkeypatch.setattr(SegmentSpool, "append", fail_at_the_second)
    with pytest.raises(
        InputError, match=r"No space left on device; free some space[^\n]*\n8 of 25 frames are kept in"
    ):
        engine.render(make_request(), tmp_path / "out" / "video.mp4")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["video.partial.mp4"]
    assert len(decode(tmp_path / "out" / "video.partial.mp4")) >= 8


def test_bad_output_and_bad_image_are_refused_before_any_work(
    engine: Engine, make_request: Callable[..., Request], tmp_path: Path
) -> None:
    taken = tmp_path / "taken.mp4"
    taken.write_bytes(b"mine")
    events: list[Event] = []
    with pytest.raises(InputError, match="overwrite"):
        engine.render(make_request(), taken, on_event=events.append)
    with pytest.raises(InputError, match="does not exist"):
        engine.generate(make_request(image=tmp_path / "missing.png"))
    assert taken.read_bytes() == b"mine"
    assert events == []


def test_a_transformer_alone_samples_latents_and_names_what_a_video_needs(
    tmp_path: Path, make_request: Callable[..., Request]
) -> None:
    saved_model(tmp_path / "transformer")
    engine = Engine.load(tmp_path / "transformer", config=EngineConfig(device="cpu"))
    with pytest.raises(CheckpointError, match="has no"):
        list(engine.generate(make_request(size=(64, 64))))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bit_computes_close_to_fp32(engine: Engine, precision: str) -> None:
    """On an image of the model's own world: far from it, any rounding grows to another picture."""
    image = Path(__file__).resolve().parents[3] / "examples" / "bounce.png"
    request = Request(image=image, prompt="a red circle bounces", seconds=1)
    rounded = Engine.load("demo", config=EngineConfig(precision=precision, device="cpu"))
    a, b = (next(source.generate(request)).latents for source in (engine, rounded))
    # 0.044 measured: timesteps are rounded to bf16 too, by up to 2 of 1000.
    assert 1e-3 < float((a - b).square().mean().sqrt() / a.square().mean().sqrt()) < 0.1


@pytest.mark.parametrize(("precision", "least_db"), [("int8", 35), ("int8-weight", 38)])
def test_eight_bit_computes_close_to_fp32(engine: Engine, precision: str, least_db: float) -> None:
    image = Path(__file__).resolve().parents[3] / "examples" / "bounce.png"
    request = Request(image=image, prompt="a red circle bounces", seconds=1)
    quantized = Engine.load("demo", config=EngineConfig(precision=precision, device="cpu"))
    exact, close = (next(source.generate(request)).latents for source in (engine, quantized))
    # 40 and 43 dB measured over three sections.
    assert float(20 * torch.log10(exact.norm() / (close - exact).norm())) >= least_db


def test_vae_tiles_are_used_when_asked_for(make_request: Callable[..., Request], tmp_path: Path) -> None:
    config = EngineConfig(vae_tiles=True, cache_dir=tmp_path, device="cpu")
    engine = Engine.load("demo", config=config)
    next(engine.generate(make_request()))
    assert engine._model.vae.model.use_tiling


def test_missing_device_is_named() -> None:
    from isoframe.engine import DeviceError

    with pytest.raises(DeviceError, match="device 'cuda:7'"):
        Engine.load("demo", config=EngineConfig(device="cuda:7"))


def test_unknown_model_suggests_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="did you mean 'demo'"):
        Engine.load("dmeo")


def test_unknown_component_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'vae'"):
        Engine.load("demo", components={"vea": "x"})


def test_an_attention_that_cannot_run_is_refused_at_load() -> None:
    with pytest.raises(DeviceError, match="'flash-attn' needs a CUDA device, got cpu; use attention='sdpa'"):
        Engine.load("demo", config=EngineConfig(device="cpu", attention="flash-attn"))


def test_fp8_that_this_device_cannot_multiply_is_told_at_load(caplog: pytest.LogCaptureFixture) -> None:
    Engine.load("demo", config=EngineConfig(device="cpu", precision="int8")).close()
    assert "fp8" not in caplog.text
    Engine.load("demo", config=EngineConfig(device="cpu", precision="fp8")).close()
    assert (
        "precision 'fp8' saves memory but no time here: cpu has no fp8 product that gives float32"
        in caplog.text
    )


def test_measured_launch_settings_are_used_on_their_card_and_damaged_ones_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launching, "_measured", {})
    config, device = EngineConfig(device="cpu", cache_dir=tmp_path), torch.device("cuda", 0)
    path = tmp_path / "launch_settings.json"
    path.write_text('{"modulated_layer_norm": {"86": {"num_warps": 2}}}')
    monkeypatch.setattr(loaded_model, "resolve_device", lambda _: device)
    monkeypatch.setattr(loaded_model, "this_machine", lambda *_, **__: None)
    for capability, expected in ((89, {}), (86, {("modulated_layer_norm", 86): {"num_warps": 2}})):
        monkeypatch.setattr(loaded_model, "device_capability", lambda _, found=capability: found)
        loaded_model.Place.of(config)
        assert launching._measured == expected
    for content in ("{", '{"modulated_layer_norm": {"86": {"num_warps": 3}}}'):
        caplog.clear()
        path.write_text(content)
        loaded_model.Place.of(config)
        assert "launch_settings.json is damaged" in caplog.text
    assert launching._measured == expected


@pytest.mark.parametrize("order", ORDERS)
def test_latents_are_written_in_video_order_with_what_the_video_says(
    engine: Engine, make_request: Callable[..., Request], tmp_path: Path, order: str
) -> None:
    request, path = make_request(order=order), tmp_path / "deep" / "a.safetensors"
    video = engine.render(request, tmp_path / "v.mp4", latents_path=path)
    sections = list(engine.generate(request))
    in_order = sections if order == "forward" else sections[::-1]
    with safetensors.safe_open(path, framework="pt") as file:
        latents = file.get_tensor("latents")
        assert json.loads(file.metadata()["comment"]) == video.metadata
    assert torch.equal(latents[:, :, 1:], torch.cat([section.latents for section in in_order], dim=2))
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_latents_of_a_resumed_job_are_those_of_a_whole_one(
    engine: Engine, make_request: Callable[..., Request], tmp_path: Path
) -> None:
    request = make_request()
    engine.render(request, tmp_path / "a.mp4", latents_path=tmp_path / "a.safetensors")

    def stop(event: Event) -> None:
        if isinstance(event, StepEvent) and event.section == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.render(
            request, tmp_path / "b.mp4", job_dir=tmp_path / "job", latents_path=tmp_path / "b.safetensors",
            on_event=stop,
        )  # fmt: skip
    assert not list(tmp_path.glob("*b.safetensors*"))
    engine.render(
        request, tmp_path / "b.mp4", job_dir=tmp_path / "job", latents_path=tmp_path / "b.safetensors"
    )
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(InputError, match="cannot be written of a job that is complete"):
        engine.render(
            request, tmp_path / "c.mp4", job_dir=tmp_path / "job", latents_path=tmp_path / "c.safetensors"
        )  # fmt: skip
    with pytest.raises(InputError, match=r"must end in .safetensors"):
        engine.render(request, tmp_path / "c.mp4", latents_path=tmp_path / "c.pt")


def test_every_png_carries_the_metadata_and_its_number(
    engine: Engine, make_request: Callable[..., Request], tmp_path: Path
) -> None:
    made = engine.render(make_request(), tmp_path / "v.mp4", png_dir=tmp_path / "frames")
    info = read_video_info(tmp_path / "frames" / "frame_00007.png")
    assert info.metadata == {**made.metadata, "frame": 7}
    assert (info.num_frames, info.width, info.height) == (1, 64, 64)
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="must be a PNG"):
        read_video_info(tmp_path / "no.png")


@pytest.mark.parametrize(
    ("step_cache", "options"), [("teacache", {}), ("magcache", {"step_cache_threshold": 0.3})]
)
def test_the_error_of_a_step_cache_is_that_of_the_first_section(
    engine: Engine, make_request: Callable[..., Request], step_cache: str, options: dict[str, Any]
) -> None:
    request = make_request(step_cache=step_cache, num_steps=10, seconds=0.3, **options)
    measured = engine.step_cache_error(request)
    (cached,), (exact,) = (
        list(engine.generate(asked)) for asked in (request, make_request(num_steps=10, seconds=0.3))
    )
    expected = (cached.latents - exact.latents).norm() / exact.latents.norm()
    assert measured.relative_error == pytest.approx(float(expected))
    assert 0 < measured.relative_error < 1
    assert measured.num_computed + measured.num_skipped == 10
    assert measured.num_skipped > 0
    with pytest.raises(ConfigError, match="must be teacache or magcache"):
        engine.step_cache_error(make_request())
