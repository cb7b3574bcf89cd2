"""Images that take the place of the start image from a time on."""

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from isoframe.bench.quality.clip_scores import center_of_mass
from isoframe.bench.quality.world import Scene, render, sample_scene
from isoframe.engine import (
    Anchor,
    ConfigError,
    Engine,
    EngineConfig,
    GuideImage,
    InputError,
    JobEvent,
    JobFolder,
    Request,
    SamplingConfig,
)
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.interfaces.commands.terminal.options import parse_guides
from isoframe.engine.media.codecs import VideoFormat
from isoframe.engine.media.images import fit_to_bucket, image_to_tensor, load_image
from isoframe.engine.media.video import VideoWriter
from isoframe.engine.model.packing import ContextGroup
from isoframe.engine.reproduction import Recipe, reproduce
from isoframe.engine.request.sections import plan_sections

EXAMPLES = Path(__file__).parents[3] / "examples"
SPIN, UP = EXAMPLES / "spin.png", EXAMPLES / "up.png"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu"))


def request_of(**changes: Any) -> Request:
    """A job of 5 sections of 8 frames: 0, 0.3, 0.57, 0.83, 1.1 and 1.37 s are their borders."""
    fields: dict[str, Any] = {
        "image": EXAMPLES / "bounce.png", "prompt": "a circle", "seconds": 40 / 30, "num_steps": 1,
        "latent_window_size": 2, "seed": 5,
    }  # fmt: skip
    return Request(**fields | changes)


def guides(**images: Any) -> tuple[GuideImage, ...]:
    return tuple(GuideImage(image=image, time=float(name[1:]) / 100) for name, image in images.items())


def test_every_stretch_between_guides_has_the_published_paddings() -> None:
    plan = plan_sections(SamplingConfig(num_sections=9, guide_places=(3, 4)))
    assert [section.latent_padding for section in plan] == [3, 2, 2, 1, 0, 0, 2, 1, 0]
    assert [section.place for section in plan] == [8, 7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_sections_from_a_guides_time_on_see_it_in_place_of_the_start_image(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    starts: dict[int, Tensor] = {}
    embeds: list[Tensor] = []
    tables: list[Any] = []
    pack, project = PackedTransformer.pack_section, PackedTransformer.project_image
    prepare = PackedTransformer.prepare_job

    def spy_pack(self: PackedTransformer, groups: list[ContextGroup], *rest: Any) -> Any:
        starts[len(starts)] = groups[-1].latents[:, :, :1]
        return pack(self, groups, *rest)

    def spy_project(self: PackedTransformer, image_embeds: Tensor) -> Tensor:
        embeds.append(image_embeds)
        return project(self, image_embeds)

    def spy_prepare(self: PackedTransformer, *rest: Any) -> Any:
        tables.append(prepare(self, *rest))
        return tables[-1]

    monkeypatch.setattr(PackedTransformer, "prepare_job", spy_prepare)
    monkeypatch.setattr(PackedTransformer, "pack_section", spy_pack)
    monkeypatch.setattr(PackedTransformer, "project_image", spy_project)
    request = request_of(order=order, guide_images=guides(_30=SPIN, _90=UP))
    sections = list(engine.generate(request))
    images = [fit_to_bucket(load_image(path), (64, 64)) for path in (EXAMPLES / "bounce.png", SPIN, UP)]
    latents = [
        engine._model.vae.encode(image_to_tensor(image), posterior="sample", seed=5) for image in images
    ]
    # The places 0 | 1 2 | 3 4 of the video, in the order they are made.
    seen = [0, 1, 1, 2, 2] if order == "forward" else [2, 2, 1, 1, 0]
    assert [next(i for i, one in enumerate(latents) if torch.equal(one, starts[n])) for n in range(5)] == seen
    expected = engine._model.encoders.encode_images(images)
    changes = [0, 1, 2] if order == "forward" else [2, 1, 0]
    assert len(embeds) == 3
    # Text and modulation do not depend on the image: they are computed once.
    assert len(tables) == 1
    assert all(torch.equal(embeds[n], expected[i]) for n, i in enumerate(changes))
    assert len(sections) == 5


def scene_at(x: float) -> Scene:
    scene = sample_scene(random.Random(100), motion="bounces", shape="circle", color="red")
    return replace(scene, x=x)


def first_frame(scene: Scene) -> np.ndarray:
    pixels = (render(scene, torch.zeros(1))[:, 0].permute(1, 2, 0) + 1) * 127.5
    return np.asarray(pixels.round().to(torch.uint8))


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_the_video_starts_at_its_image_and_is_at_the_guide_from_its_time_on(
    engine: Engine, order: str
) -> None:
    request = Request(
        image=first_frame(scene_at(20)), prompt="a red circle bounces", seconds=2.4, num_steps=8, order=order,
        guide_images=(GuideImage(image=first_frame(scene_at(44)), time=1.2),),
    )  # fmt: skip
    sections = sorted(engine.generate(request), key=lambda section: section.first_frame)
    frames = torch.cat([section.frames for section in sections])
    # The circle alone is red.
    redness = frames[..., 0].float() - frames[..., 1:].float().amax(3)
    columns = center_of_mass(redness > 0.5 * redness.amax((1, 2), keepdim=True))[:, 0]
    assert len(frames) == 73
    assert (columns[:18] - 20).abs().max() < 4
    assert (columns[55:] - 44).abs().max() < 4


def test_what_a_job_says_of_its_guides_is_where_they_came_to_stand(engine: Engine, tmp_path: Path) -> None:
    events: list[Any] = []
    request = request_of(guide_images=guides(_35=SPIN, _80=UP))
    video = engine.render(request, tmp_path / "a.mp4", on_event=events.append)
    job = next(event for event in events if isinstance(event, JobEvent))
    assert job.notes == (
        "guide images: 0.35 s from 0.30 s on, 0.8 s from 0.83 s on; no published model was trained to change its start "
        "image",
    )
    assert video.metadata["request"]["guide_images"] == [
        {"image": "spin.png", "time": 0.35}, {"image": "up.png", "time": 0.8},
    ]  # fmt: skip
    assert video.metadata["sampling"]["guide_places"] == [1, 3]


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_a_job_that_was_stopped_goes_on_without_the_files_and_is_reproduced_with_them(
    engine: Engine, tmp_path: Path, order: str
) -> None:
    for image in (SPIN, UP):
        shutil.copy(image, tmp_path)
    request = request_of(order=order, guide_images=guides(_30=tmp_path / "spin.png", _80=tmp_path / "up.png"))
    straight = engine.render(request, tmp_path / "straight.mp4")

    def stop(event: Any) -> None:
        if getattr(event, "section", 0) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.render(request, tmp_path / "video.mp4", job_dir=tmp_path / "job", on_event=stop)
    other = replace(request, guide_images=guides(_30=tmp_path / "up.png", _80=tmp_path / "up.png"))
    with pytest.raises(InputError, match="another job, with guide_images_sha256"):
        engine.render(other, tmp_path / "video.mp4", job_dir=tmp_path / "job")
    recipe = Recipe.read(straight.path)
    asked = recipe.request(EXAMPLES / "bounce.png", tmp_path)
    assert reproduce(engine, recipe, asked, tmp_path / "again.mp4").is_identical
    copied = JobFolder.open(tmp_path / "job").copy(tmp_path / "copy", tmp_path / "copy.mp4")
    shutil.copy(UP, tmp_path / "spin.png")
    with pytest.raises(InputError, match=r"guide_images .*spin\.png, .*up\.png is not the one that"):
        recipe.request(EXAMPLES / "bounce.png", tmp_path)
    (tmp_path / "spin.png").unlink()
    assert engine.resume(tmp_path / "job").path.read_bytes() == straight.path.read_bytes()
    assert engine.resume(copied.path).path.read_bytes() == straight.path.read_bytes()


def test_a_redo_keeps_the_guides_and_is_reproduced(engine: Engine, tmp_path: Path) -> None:
    shutil.copy(SPIN, tmp_path)
    request = request_of(guide_images=guides(_80=tmp_path / "spin.png"))
    first = engine.render(request, tmp_path / "a.mp4", job_dir=tmp_path / "job").path.read_bytes()
    JobFolder.open(tmp_path / "job").redo(1, seed=8, prompt="a square")
    video = engine.resume(tmp_path / "job", overwrite=True)
    assert video.path.read_bytes() != first
    recipe = Recipe.read(video.path)
    asked = recipe.request(EXAMPLES / "bounce.png", tmp_path)
    assert reproduce(engine, recipe, asked, tmp_path / "again.mp4").is_identical


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_times_of_guides_count_from_the_start_of_what_is_added_to_a_video(
    engine: Engine, tmp_path: Path, direction: str
) -> None:
    clip = tmp_path / "clip.mp4"
    with VideoWriter(clip, VideoFormat(height=64, width=64), num_frames=9) as writer:
        writer.write(np.full((9, 64, 64, 3), 90, np.uint8), 0)
        writer.finish()
    request = request_of(video=clip, direction=direction)
    plain = {section.index: section.latents for section in engine.generate(request)}
    guided = list(engine.generate(replace(request, guide_images=guides(_30=SPIN))))
    # Of 5 sections the first in the video begins before the guide: it alone has the same start image.
    is_same = [torch.equal(section.latents, plain[section.index]) for section in guided]
    assert is_same == ([True, False, False, False, False] if direction == "forward" else [False] * 5)
    assert max(section.first_frame + len(section.frames) for section in guided) == (
        49 if direction == "forward" else 41
    )


def test_an_array_is_no_guide_that_a_video_can_be_reproduced_with(engine: Engine, tmp_path: Path) -> None:
    request = request_of(guide_images=(GuideImage(image=first_frame(scene_at(20)), time=0.3),))
    video = engine.render(request, tmp_path / "a.mp4")
    with pytest.raises(InputError, match=r"a guide image at 0\.3 s that came without a file name"):
        Recipe.read(video.path).request(EXAMPLES / "bounce.png", tmp_path)


def test_guides_of_a_conditioning_are_as_many_as_the_places_and_fit_it(engine: Engine) -> None:
    request = request_of(guide_images=guides(_30=SPIN))
    conditioning, sampling = engine.condition(request), request.sampling()
    assert sampling.guide_places == (1,)
    made = {section.index: section.latents for section in engine.sample(conditioning, sampling)}
    assert all(torch.equal(section.latents, made[section.index]) for section in engine.generate(request))
    with pytest.raises(InputError, match="guides must be as many as guide_places, which are 2, got 1"):
        engine.sample(conditioning, replace(sampling, guide_places=(1, 2)))
    wide = Anchor(latent=torch.zeros(1, 16, 1, 8, 10), image_embeds=conditioning.image_embeds)
    with pytest.raises(InputError, match="guides' latent must have the shape"):
        engine.sample(replace(conditioning, guides=(wide,)), sampling)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"guide_images": guides(_10=SPIN)}, r"inside the video \(0 s is its image, 1.37 s its end\), got 0.1 s; take a"),
    ({"guide_images": guides(_130=SPIN)}, r"got 1.3 s; take a time that is nearest to one of 0.30, 0.57, 0.83, 1.10 s"),
    ({"guide_images": guides(_900=SPIN)}, "got 9 s; take a time"),
    ({"guide_images": guides(_10=SPIN), "seconds": 0.2}, "got 0.1 s; it has one section, within which nothing can"),
    ({"guide_images": guides(_30=SPIN, _35=UP)}, r"a section apart \(0.27 s\), 0.3 s and 0.35 s both snap to 0.30 s"),
    ({"guide_images": guides(_80=SPIN, _30=UP)}, "in the order of their times, got 0.8 s before 0.3 s"),
    ({"guide_images": guides(_30=None)}, "guide_images must have an image and a time in seconds"),
    ({"guide_images": (GuideImage(image=SPIN, time=float("nan")),)}, "an image and a time in seconds, got nan"),
    ({"guide_images": [SPIN]}, "guide_images must be a tuple of GuideImage"),
    ({"guide_images": guides(_30=SPIN), "order": "endpoints", "allow_untrained": True},
     "guide_images need order='inverted' or 'forward', got 'endpoints'"),
    ({"guide_images": guides(_30=SPIN), "latent_paddings": (4, 3, 2, 1, 0)}, "guide_images and latent_paddings exclude"),
    ({"guide_images": guides(_30=SPIN), "target_index": 4}, "guide_images and target_index exclude each other"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSALS)
def test_a_guide_that_has_no_place_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        request_of(**changes)


@pytest.mark.parametrize("places", [(0,), (3,), (2, 1), (1, 1)])
def test_places_of_guides_increase_inside_the_video(places: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="guide_places must"):
        SamplingConfig(num_sections=3, guide_places=places)


def test_a_guide_that_cannot_be_read_is_refused_before_any_work(engine: Engine, tmp_path: Path) -> None:
    missing = tmp_path / "none.png"
    with pytest.raises(InputError, match=r"none\.png does not exist"):
        engine.generate(request_of(guide_images=guides(_30=missing)))
    result = CliRunner().invoke(
        build_app(),
        ["generate", str(SPIN), "-p", "a", "-o", str(tmp_path / "a.mp4"), "--guide-image", f"2.4s={missing}",
         "--model", "no/such-model"],
    )  # fmt: skip
    assert result.exit_code == 1
    assert "none.png does not exist" in result.stderr


def test_the_command_line_sorts_guides_and_names_what_it_cannot_read() -> None:
    parsed = parse_guides(["4.8s=b=1.png", "2.4 = a.png", ".5s=C:\\c.png"])
    assert [(guide.time, guide.image) for guide in parsed] == [
        (0.5, "C:\\c.png"), (2.4, " a.png"), (4.8, "b=1.png"),
    ]  # fmt: skip
    for text in ("a.png", "2.4s", "2.4s=", "-1s=a.png", "2,4s=a.png"):
        with pytest.raises(ConfigError, match=r"--guide-image must be TIMEs=FILE such as 2\.4s=later\.png"):
            parse_guides([text])


@pytest.mark.parametrize("changes", [{"image": None}, {"loop": True}, {"cfg_scale": 2.0}])
def test_guides_go_with_text_alone_loops_and_true_guidance(engine: Engine, changes: dict[str, Any]) -> None:
    guided = list(engine.generate(request_of(guide_images=guides(_80=SPIN), **changes)))
    plain = list(engine.generate(request_of(**changes)))
    assert [section.first_frame for section in guided] == [section.first_frame for section in plain]
    assert not torch.equal(guided[0].latents, plain[0].latents)
