"""How many frames of the engine lie between a door and the step loop: whoever follows a request has to read them all."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from PIL import Image
from typer.testing import CliRunner
from video_server import SMALL, KeptWorkers, picture, serving, small_limits

import isoframe.engine
from isoframe.engine import Engine, EngineConfig, Request
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.sampling.sampler import Euler

OWN = str(Path(isoframe.engine.__file__).parent)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine.load(
        "demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu")
    ) as engine:
        yield engine


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the engine's functions that are at work at every step, the loop's first."""
    found: list[list[str]] = []
    update = Euler.update

    def noted(self: Euler, *arguments: object) -> object:
        frame: FrameType | None = sys._getframe(1)
        names = []
        while frame is not None:
            if frame.f_code.co_filename.startswith(OWN):
                names.append(frame.f_code.co_qualname)
            frame = frame.f_back
        found.append(names)
        return update(self, *arguments)

    monkeypatch.setattr(Euler, "update", noted)
    return found


def test_render_is_at_most_seven_frames_from_the_loop(
    engine: Engine, tmp_path: Path, stacks: list[list[str]]
) -> None:
    Image.new("RGB", (70, 64), (200, 60, 40)).save(tmp_path / "start.png")
    request = Request(
        image=tmp_path / "start.png",
        prompt="a",
        seconds=4 / 30,
        num_steps=1,
        latent_window_size=1,
        sampler="euler",
    )
    engine.render(request, tmp_path / "video.mp4")
    (names,) = stacks
    assert (names[-1], len(names) <= 7) == ("Engine.render", True), names


def test_generate_is_at_most_eleven_frames_from_the_loop(tmp_path: Path, stacks: list[list[str]]) -> None:
    Image.new("RGB", (70, 64), (200, 60, 40)).save(tmp_path / "start.png")
    options = [
        "--prompt",
        "a",
        "--seconds",
        "0.1",
        "--steps",
        "1",
        "--window",
        "1",
        "--sampler",
        "euler",
        "--quiet",
    ]
    paths = ["--out", str(tmp_path / "a.mp4"), "--cache-dir", str(tmp_path / "cache"), "--device", "cpu"]
    result = CliRunner().invoke(build_app(), ["generate", str(tmp_path / "start.png"), *options, *paths])
    assert result.exit_code == 0, result.output
    (names,) = stacks
    # The command line's own main calls what the test calls.
    assert 1 + len(names) <= 11, "\n".join(names)


def test_a_posted_video_is_at_most_ten_frames_from_the_loop(
    engine: Engine, tmp_path: Path, stacks: list[list[str]]
) -> None:
    service = VideoService(KeptWorkers(engine), tmp_path, max_queued=2, limits=small_limits())
    with serving(service) as ask:
        name = ask.send_form({**SMALL, "sampler": "euler"}, picture()).json["id"]
        assert ask.events(name)[-1]["status"] == "completed"
    (names,) = stacks
    assert len(names) <= 10, names
