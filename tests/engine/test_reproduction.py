"""Videos made again from their metadata; frames that pass through a function of the host."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from isoframe.engine import ConfigError, ContentError, Engine, EngineConfig, InputError, Request
from isoframe.engine.generation.frame_filter import FrameFilter, load_filter
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.media.codecs import ffmpeg_url
from isoframe.engine.media.exports import export_video
from isoframe.engine.media.video import read_video_info
from isoframe.engine.reproduction import Recipe, reproduce


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu"))


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., Request]:
    """A job of 3 sections of 4 frames."""
    path = tmp_path / "start.png"
    Image.new("RGB", (70, 64), (200, 60, 40)).save(path)

    def make(**changes: Any) -> Request:
        fields: dict[str, Any] = {
            "image": path, "prompt": "a red circle", "seconds": 12 / 30, "num_steps": 2,
            "latent_window_size": 1, "seed": 5,
        }  # fmt: skip
        return Request(**fields | changes)

    return make


def again(engine: Engine, file: Path, image: Path | None = None) -> Any:
    recipe = Recipe.read(file)
    return reproduce(engine, recipe, recipe.request(image, file.parent), file.with_name("again.mp4"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt": "[0s] a [0.2s] b", "order": "forward", "prompt_blend": 0.3},
        {"codec": "hevc", "posterior": "mode"},
    ],
    ids=str,
)
def test_a_video_is_made_again_bit_for_bit(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, changes: dict[str, Any]
) -> None:
    engine.render(request_of(**changes), tmp_path / "video.mp4")
    made = again(engine, tmp_path / "video.mp4")
    assert (made.is_identical, made.num_frames, made.psnr, made.differences) == (True, 13, math.inf, ())
    assert made.video.metadata["sampling"] == read_video_info(tmp_path / "video.mp4").metadata["sampling"]


def test_redone_sections_are_made_again_too(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    engine.render(request_of(), tmp_path / "first.mp4", job_dir=tmp_path / "job")
    JobFolder.open(tmp_path / "job").redo(1, seed=99)
    engine.resume(tmp_path / "job", tmp_path / "video.mp4")
    assert (tmp_path / "first.mp4").read_bytes() != (tmp_path / "video.mp4").read_bytes()
    assert again(engine, tmp_path / "video.mp4").is_identical


def test_one_png_is_enough(engine: Engine, request_of: Callable[..., Request], tmp_path: Path) -> None:
    engine.render(request_of(), tmp_path / "video.mp4", png_dir=tmp_path / "frames")
    recipe = Recipe.read(tmp_path / "frames" / "frame_00009.png")
    request = recipe.request(tmp_path / "start.png", tmp_path)
    made = reproduce(engine, recipe, request, tmp_path / "again.mp4")
    assert (made.is_identical, made.num_frames) == (True, 1)


def relabelled(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same frames under other metadata."""
    import av

    metadata = read_video_info(source).metadata
    change(metadata)
    with av.open(ffmpeg_url(source)) as given, av.open(ffmpeg_url(target), "w", format="mp4") as made:
        made.metadata["comment"] = json.dumps(metadata)
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    return target


def test_what_differs_is_counted_and_named(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    engine.render(request_of(), tmp_path / "video.mp4")

    def other_seed(metadata: dict[str, Any]) -> None:
        metadata["request"]["seed"] = 6
        metadata["versions"]["torch"] = "1.0"

    made = again(engine, relabelled(tmp_path / "video.mp4", tmp_path / "seed.mp4", other_seed))
    assert not made.is_identical
    assert 0 < made.num_different <= made.num_frames == 13
    assert 0 < made.psnr < 60
    assert made.differences == (f"torch 1.0 then, {torch.__version__} now",)


def test_other_images_models_and_makings_are_refused(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    video = engine.render(request_of(), tmp_path / "video.mp4").path
    Image.new("RGB", (64, 64), "green").save(tmp_path / "other.png")
    recipe = Recipe.read(video)
    with pytest.raises(InputError, match=r"other.png is not the one that .* their hashes differ"):
        recipe.request(tmp_path / "other.png", tmp_path)
    (tmp_path / "away").mkdir()
    moved = video.rename(tmp_path / "away" / "video.mp4")
    with pytest.raises(InputError, match=r"start.png, which .* is neither in .* --image"):
        Recipe.read(moved).request(None, tmp_path / "away")
    start = tmp_path / "start.png"
    model = relabelled(moved, tmp_path / "model.mp4", lambda metadata: metadata.update(model_hash="0"))
    with pytest.raises(InputError, match="was made with model_hash 0, this engine has"):
        again(engine, model, image=start)
    unknown = relabelled(moved, tmp_path / "new.mp4", lambda metadata: metadata["request"].update(colour=1))
    with pytest.raises(InputError, match="options that this version does not know: colour"):
        again(engine, unknown, image=start)
    with pytest.raises(InputError, match="by a post-process; reproduce that video"):
        Recipe.read(export_video(moved, tmp_path / "smooth.mp4", interpolate=2).path)
    with pytest.raises(InputError, match="does not say how it was made"):
        Recipe.read(tmp_path / "other.png")


def test_the_command_says_what_came_of_it(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    engine.render(request_of(), tmp_path / "video.mp4")
    command = ["reproduce", "--device", "cpu", "--cache-dir", str(engine.config.cache_path()), "--quiet"]
    result = CliRunner().invoke(build_app(), [*command, str(tmp_path / "video.mp4")])
    assert result.exit_code == 0, result.output
    assert "13 of 13 frames are identical" in result.output.replace("\n", " ")
    other = relabelled(
        tmp_path / "video.mp4", tmp_path / "b.mp4", lambda metadata: metadata["request"].update(seed=6)
    )
    assert CliRunner().invoke(build_app(), [*command, str(other)]).exit_code == 1
    old = relabelled(other, tmp_path / "c.mp4", lambda metadata: metadata["versions"].update(torch="1.0"))
    result = CliRunner().invoke(build_app(), [*command, str(old)])
    assert (result.exit_code, "torch 1.0 then" in result.output) == (3, True)


def darken(frames: Tensor, first_frame: int) -> Tensor:
    """Black but for the number of the frame in the corner."""
    dark = torch.zeros_like(frames)
    dark[:, 0, 0, 0] = torch.arange(first_frame, first_frame + len(frames))
    return dark


def refuse_late_frames(frames: Tensor, first_frame: int) -> Tensor:
    if first_frame < 5:
        raise ContentError("not for this audience")
    return frames


@pytest.fixture
def load_filtered(engine: Engine) -> Callable[[FrameFilter], Engine]:
    return lambda frame_filter: Engine.load("demo", config=engine.config, frame_filter=frame_filter)


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_every_frame_passes_through_the_filter_once_final_and_while_provisional(
    load_filtered: Callable[[FrameFilter], Engine], request_of: Callable[..., Request], order: str
) -> None:
    filtered = load_filtered(darken)
    seen = []
    for section in filtered.generate(request_of(order=order)):
        for frames, first in (
            (section.frames, section.first_frame),
            (section.preview_frames, section.preview_first_frame),
        ):
            assert frames[:, 0, 0, 0].tolist() == list(range(first, first + len(frames)))
            assert int(frames.sum()) == int(frames[:, 0, 0, 0].sum())
        seen += section.frames[:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(13))


def test_a_filter_that_refuses_ends_the_job_and_keeps_what_passed(
    load_filtered: Callable[[FrameFilter], Engine], request_of: Callable[..., Request], tmp_path: Path
) -> None:
    filtered = load_filtered(refuse_late_frames)
    with pytest.raises(ContentError, match="not for this audience") as failure:
        filtered.render(request_of(seconds=20 / 30), tmp_path / "video.mp4")
    assert not (tmp_path / "video.mp4").exists()
    kept = read_video_info(tmp_path / "video.partial.mp4")
    assert kept.metadata["partial"]["first_frame"] >= 5
    assert any("are kept in" in note for note in failure.value.__notes__)


def test_a_job_and_its_file_know_their_filter(
    engine: Engine,
    load_filtered: Callable[[FrameFilter], Engine],
    request_of: Callable[..., Request],
    tmp_path: Path,
) -> None:
    filtered = load_filtered(darken)
    filtered.render(request_of(), tmp_path / "video.mp4", job_dir=tmp_path / "job")
    assert again(filtered, tmp_path / "video.mp4").is_identical
    with pytest.raises(InputError, match=r"another job, with frame_filter .*darken"):
        engine.render(request_of(), tmp_path / "other.mp4", job_dir=tmp_path / "job")
    with pytest.raises(InputError, match=r"was made with frame_filter .*darken, this engine has None"):
        again(engine, tmp_path / "video.mp4")


def test_a_filter_that_returns_something_else_or_does_not_exist_is_refused(
    load_filtered: Callable[[FrameFilter], Engine], request_of: Callable[..., Request]
) -> None:
    filtered = load_filtered(lambda frames, _: frames.float())
    with pytest.raises(ConfigError, match=r"must return uint8 \(.*\), got torch.float32"):
        list(filtered.generate(request_of()))
    with pytest.raises(ConfigError, match="MODULE:FUNCTION, 'nowhere:f' cannot be imported"):
        load_filter("nowhere:f")
    with pytest.raises(ConfigError, match="'os:sep' is no function"):
        load_filter("os:sep")
    assert load_filter("os.path:join") is not None
