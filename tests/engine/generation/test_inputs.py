"""What a video may begin with, end with and continue: images, nothing, another video."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from seen_groups import latents_of, watch_groups

from isoframe.engine import ConfigError, Engine, EngineConfig, InputError, JobEvent, PromptSpan, Request
from isoframe.engine.media.codecs import VideoFormat
from isoframe.engine.media.segments import SegmentSpool
from isoframe.engine.media.video import VideoWriter, read_video_info
from isoframe.engine.model.packing import ContextGroup
from isoframe.engine.reproduction import Recipe, reproduce

EXAMPLES = Path(__file__).parents[3] / "examples"
PROMPT = "a red circle bounces"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu"))


@pytest.fixture
def request_of() -> Callable[..., Request]:
    """A job of 3 sections of 8 frames."""

    def make(**changes: Any) -> Request:
        fields: dict[str, Any] = {
            "image": EXAMPLES / "bounce.png", "prompt": PROMPT, "seconds": 0.8, "num_steps": 2,
            "latent_window_size": 2, "seed": 5,
        }  # fmt: skip
        return Request(**fields | changes)

    return make


@pytest.fixture
def histories(monkeypatch: pytest.MonkeyPatch) -> list[list[ContextGroup]]:
    """What every section saw."""
    return watch_groups(monkeypatch)


def joined(sections: list[Any]) -> np.ndarray:
    """Frames in video order; every place is there once."""
    ordered = sorted((section for section in sections if len(section.frames)), key=lambda s: s.first_frame)
    for one, other in itertools.pairwise(ordered):
        assert one.first_frame + len(one.frames) == other.first_frame
    return torch.cat([section.frames for section in ordered]).numpy()


def change(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference in levels of 255."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("use", ["first-section", "history"])
def test_the_end_image_follows_the_last_section_and_stays_only_if_asked(
    engine: Engine, request_of: Callable[..., Request], histories: list[list[ContextGroup]], use: str
) -> None:
    request = request_of(end_image=EXAMPLES / "spin.png", end_image_use=use, end_image_strength=0.5)
    sections = list(engine.generate(request))
    end = engine._model.vae.encode(_pixels(EXAMPLES / "spin.png"), posterior="sample", seed=5) * 0.5
    first, second, third = map(latents_of, histories)
    assert torch.equal(first[1][:, :, 1:], end)
    # Later the nearest frame is a generated one; the end image moves away with every section of 2, or is gone.
    assert torch.equal(second[1][:, :, 1], sections[0].latents[:, :, 0])
    kept = second[2][:, :, 1], third[4][:, :, 1]
    for latent in kept:
        assert torch.equal(latent, end[:, :, 0] if use == "history" else torch.zeros_like(latent))


def _pixels(path: Path) -> torch.Tensor:
    from isoframe.engine.media.images import fit_to_bucket, image_to_tensor, load_image

    return image_to_tensor(fit_to_bucket(load_image(path), (64, 64)))


def test_a_loop_is_a_video_whose_end_image_is_its_image(
    engine: Engine, request_of: Callable[..., Request]
) -> None:
    loop = joined(list(engine.generate(request_of(loop=True))))
    ended = joined(list(engine.generate(request_of(end_image=EXAMPLES / "bounce.png"))))
    plain = joined(list(engine.generate(request_of())))
    assert np.array_equal(loop, ended)
    assert not np.array_equal(loop, plain)


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_text_alone_makes_a_video_that_lacks_the_start_image_and_says_so(
    engine: Engine,
    request_of: Callable[..., Request],
    histories: list[list[ContextGroup]],
    tmp_path: Path,
    order: str,
) -> None:
    events: list[Any] = []
    request = request_of(image=None, order=order)
    video = engine.render(request, tmp_path / "a.mp4", on_event=events.append)
    job = next(event for event in events if isinstance(event, JobEvent))
    assert video.num_frames == job.num_frames == read_video_info(video.path).num_frames == 8 * 3 - 3
    assert job.notes == ("text-to-video: image-to-video models were not trained without a start image",)
    assert not any(latents_of(groups)[1][:, :, 0].any() for groups in histories)
    assert video.metadata["image_sha256"] is None
    assert len(joined(list(engine.generate(request)))) == 21


@pytest.fixture(scope="module")
def clip(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """73 frames that the demo model made."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return engine.render(
        Request(image=EXAMPLES / "bounce.png", prompt=PROMPT, seconds=2.4, num_steps=12, crf=4), path
    ).path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> dict[int, np.ndarray]:
    """Every frame that is handed to the encoder, by its place."""
    frames: dict[int, np.ndarray] = {}
    append = SegmentSpool.append

    def spy(self: SegmentSpool, video_format: Any, pixels: np.ndarray, first_frame: int) -> Any:
        frames.update(enumerate(pixels, start=first_frame))
        return append(self, video_format, pixels, first_frame)

    monkeypatch.setattr(SegmentSpool, "append", spy)
    return frames


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_an_extended_video_keeps_its_frames_bit_for_bit_and_goes_on_as_smoothly_as_it_was(
    engine: Engine, clip: Path, tmp_path: Path, encoded: dict[int, np.ndarray], direction: str
) -> None:
    request = Request(image=None, video=clip, direction=direction, prompt=PROMPT, seconds=2.4, num_steps=12)
    video = engine.render(request, tmp_path / "long.mp4")
    given, num_made = decoded(clip), 72 if direction == "forward" else 73
    assert video.num_frames == len(encoded) == 73 + num_made
    frames = np.stack([encoded[place] for place in range(video.num_frames)])
    start, seam = (0, 72) if direction == "forward" else (73, 72)
    assert np.array_equal(frames[start : start + 73], given)
    changes = [change(one, other) for one, other in itertools.pairwise(frames)]
    assert changes[seam] <= max(change(one, other) for one, other in itertools.pairwise(given))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_history_is_the_end_of_the_given_video_and_aligned_to_its_frames(
    engine: Engine, clip: Path, histories: list[list[ContextGroup]], direction: str
) -> None:
    request = Request(
        image=None, video=clip, direction=direction, prompt=PROMPT, seconds=0.1, num_steps=1, posterior="mode",
        latent_window_size=1,
    )  # fmt: skip
    list(engine.generate(request))
    frames = torch.from_numpy(decoded(clip)).float() / 127.5 - 1
    pixels = frames.permute(3, 0, 1, 2)[None]
    if direction == "backward":
        # One latent stands for frames 0 to 3 if a frame comes before them.
        pixels = torch.cat([pixels[:, :, :1], pixels[:, :, :72]], dim=2)
        latents = engine._model.vae.encode(pixels, posterior="mode", seed=0)[:, :, 1:]
        near, mid = latents[:, :, :1], latents[:, :, 1:3]
    else:
        latents = engine._model.vae.encode(pixels, posterior="mode", seed=0)
        near, mid = latents[:, :, -1:], latents[:, :, -3:-1]
    first = latents_of(histories[0])
    assert torch.equal(first[1][:, :, 1:], near)
    assert torch.equal(first[2], mid)


def test_an_extension_resumes_and_is_reproduced(engine: Engine, clip: Path, tmp_path: Path) -> None:
    shutil.copy(clip, tmp_path / "clip.mp4")
    request = Request(
        image=EXAMPLES / "bounce.png", video=tmp_path / "clip.mp4", prompt="", prompt_spans=(
            PromptSpan(text="a", start=0), PromptSpan(text="b", start=0.14)), seconds=12 / 30, num_steps=1,
        latent_window_size=1,
    )  # fmt: skip
    straight = engine.render(request, tmp_path / "straight.mp4")

    def stop(event: Any) -> None:
        if getattr(event, "section", 0) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.render(request, tmp_path / "video.mp4", job_dir=tmp_path / "job", on_event=stop)
    assert engine.resume(tmp_path / "job").path.read_bytes() == straight.path.read_bytes()
    recipe = Recipe.read(straight.path)
    asked = recipe.request(EXAMPLES / "bounce.png", tmp_path)
    assert reproduce(engine, recipe, asked, tmp_path / "again.mp4").is_identical
    with (tmp_path / "clip.mp4").open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"video .* is not the one that"):
        recipe.request(EXAMPLES / "bounce.png", tmp_path)
    with pytest.raises(InputError, match="another job, with video_sha256"):
        engine.resume(tmp_path / "job", tmp_path / "b.mp4")


def test_another_shape_is_cropped_and_png_frames_are_whole(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    source = tmp_path / "wide.mp4"
    with VideoWriter(source, VideoFormat(height=70, width=100), num_frames=9, metadata={}) as writer:
        writer.write(np.full((9, 70, 100, 3), 90, np.uint8), 0)
        writer.finish()
    request = request_of(image=None, video=source, seconds=0.3, loop=False)
    video = engine.render(request, tmp_path / "v.mp4", png_dir=tmp_path / "png")
    assert (video.width, video.height, video.num_frames) == (64, 64, 9 + 8)
    assert len(list((tmp_path / "png").iterdir())) == 17


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"end_image": "x.png", "order": "forward"}, "end_image and loop need order='inverted'"),
    ({"loop": True, "end_image": "x.png"}, "loop takes the image as the end image, got an end_image too"),
    ({"loop": True, "image": None}, "loop takes the image as the end image, got no image"),
    ({"end_image": "x.png", "end_image_strength": 1.5}, "end_image_strength must be from 0 to 1"),
    ({"end_image": "x.png", "end_image_use": "histry"}, "did you mean 'history'"),
    ({"video": "v.mp4", "loop": True}, "video excludes end_image and loop"),
    ({"video": "v.mp4", "order": "inverted"}, "direction 'forward' needs order='forward', got 'inverted'"),
    ({"video": "v.mp4", "direction": "back"}, "did you mean 'backward'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS)
def test_what_excludes_each_other_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Request(**{"image": "a.png", "prompt": "", **changes})


def test_a_video_that_cannot_be_extended_is_refused_before_any_work(
    engine: Engine, request_of: Callable[..., Request], clip: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"fps must be that of .*, 30, got 24; pass fps=30"):
        engine.generate(request_of(video=clip, fps=24))
    with pytest.raises(InputError, match="missing"):
        engine.generate(request_of(video=tmp_path / "none.mp4"))
    with VideoWriter(
        tmp_path / "s.mp4", VideoFormat(height=64, width=64), num_frames=4, metadata={}
    ) as writer:
        writer.write(np.zeros((4, 64, 64, 3), np.uint8), 0)
        writer.finish()
    with pytest.raises(InputError, match="must have at least 5 frames"):
        engine.generate(request_of(video=tmp_path / "s.mp4"))
    Image.new("RGB", (9, 9)).save(tmp_path / "i.png")
    with pytest.raises(InputError, match="at least 16 px"):
        engine.generate(request_of(end_image=tmp_path / "i.png"))


def test_another_base_resolution_scales_the_sizes_of_the_model(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    request = request_of(base_resolution=96, num_steps=1, seconds=0.2)
    video = engine.render(request, tmp_path / "v.mp4", job_dir=tmp_path / "job")
    assert (video.width, video.height) == (96, 96)
    recipe = Recipe.read(video.path)
    asked = recipe.request(EXAMPLES / "bounce.png", tmp_path)
    assert asked.size == (96, 96)
    assert reproduce(engine, recipe, asked, tmp_path / "again.mp4").is_identical
    for changes in ({"base_resolution": 1296}, {"base_resolution": 96, "size": (64, 64)}):
        with pytest.raises(ConfigError, match="base_resolution"):
            request_of(**changes)
