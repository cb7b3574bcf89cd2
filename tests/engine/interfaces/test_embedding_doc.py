"""docs/embedding.md: every Python example is a whole program of under 40 lines, and runs."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from video_server import KeptWorkers, load, serving

from isoframe.engine.companions.components import DEMO_FOLDER
from isoframe.engine.interfaces.server.videos.service import VideoService

ROOT = Path(__file__).resolve().parents[3]
DOC = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
# A word after the language of a block names the fixture that the example needs: ```python server.
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Example:
    """A fenced block.

    Attributes:
        heading: of the section that it stands in.
        language: after the fence.
        needs: fixture, or None.
        text: the program.
    """

    heading: str
    language: str
    needs: str | None
    text: str


def examples() -> Iterator[Example]:
    for section in re.split(r"^## ", DOC, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        for language, needs, text in BLOCK.findall(body):
            yield Example(heading, language, needs or None, text)


EXAMPLES = list(examples())
PROGRAMS = [example for example in EXAMPLES if example.language == "python"]
SCRIPTS = [example for example in EXAMPLES if example.language == "sh" and example.needs]
# Where examples expect the server; the one of the test takes a free port.
SERVER_URL = "http://127.0.0.1:8000"
# What an example leaves in its folder, by its heading.
FILES = {
    "Sections as they are made": {"start.png"},
    "A job on a thread, cancelled": {"start.png", "job", "video.partial.mp4"},
    "Going on with a job": {"start.png", "job", "video.mp4", "other.mp4"},
    "Inside a diffusers pipeline": {"start.png"},
    "Over HTTP, with curl": {"start.png", "video.mp4"},
    "Over HTTP, in Python": {"start.png", "video.mp4"},
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image, in which the program runs; a cache of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(DEMO_FOLDER.parent / "examples" / "bounce.png", folder / "start.png")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ISOFRAME_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of the demo model."""
    with (
        load(tmp_path / "cache") as engine,
        serving(VideoService(KeptWorkers(engine), tmp_path / "data")) as ask,
    ):
        yield ask.url


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.language}-{example.heading}")
def test_an_example_has_fewer_than_40_lines(example: Example) -> None:
    assert len(example.text.splitlines()) < 40


@pytest.mark.filterwarnings("ignore:.*SiglipImageProcessor.*")
@pytest.mark.parametrize("example", PROGRAMS, ids=lambda example: example.heading)
def test_a_python_example_runs_and_leaves_its_files(
    example: Example, workplace: Path, request: pytest.FixtureRequest
) -> None:
    text = fill_in(example, request)
    exec(compile(text, example.heading, "exec"), {"__name__": "__main__"})
    assert {path.name for path in workplace.iterdir()} >= FILES[example.heading]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("example", SCRIPTS, ids=lambda example: example.heading)
def test_a_script_runs_and_leaves_its_files(
    example: Example, workplace: Path, request: pytest.FixtureRequest
) -> None:
    command = ["sh", "-eu", "-c", fill_in(example, request)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result
    assert '"status":"completed"' in result.stdout
    assert {path.name for path in workplace.iterdir()} >= FILES[example.heading]


def fill_in(example: Example, request: pytest.FixtureRequest) -> str:
    """The program with what its fixture gives in place of what it expects."""
    if example.needs is None:
        return example.text
    assert SERVER_URL in example.text
    return example.text.replace(SERVER_URL, request.getfixturevalue(example.needs))
