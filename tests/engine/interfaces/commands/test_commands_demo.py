"""``isoframe demo`` and ``isoframe info`` on what ships with the package."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from isoframe.engine.demo import EXAMPLES, find_example
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.interfaces.commands.demo import EXAMPLE_NAMES
from isoframe.engine.media.video import read_video_info

SOURCES = Path(__file__).resolve().parents[4] / ".src"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a cache of its own."""
    monkeypatch.setenv("ISOFRAME_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_every_example_has_an_image_and_a_prompt() -> None:
    prompts = json.loads((EXAMPLES / "prompts.json").read_text(encoding="utf-8"))
    assert prompts
    assert {path.name for path in EXAMPLES.glob("*.png")} == set(prompts)
    assert [Path(file).stem for file in prompts] == list(EXAMPLE_NAMES)
    for file in prompts:
        image, prompt = find_example(Path(file).stem)
        assert image.is_file()
        assert prompt.strip()


def test_demo_writes_its_file_here_and_again(folder: Path) -> None:
    (folder / "isoframe-demo.mp4").write_bytes(b"of an earlier run")
    result = run("demo", "--seconds", 1)
    assert result.exit_code == 0, result.output
    assert os.listdir(folder) == ["isoframe-demo.mp4"]
    video = read_video_info(folder / "isoframe-demo.mp4")
    assert video.num_frames == 37
    assert result.stdout.startswith("isoframe-demo.mp4: 37 frames, 1.2 s")


def test_info_shows_what_the_video_was_made_from(folder: Path) -> None:
    assert run("demo", "--seconds", 1, "--seed", 7, "--quiet").exit_code == 0
    shown = run("info", "isoframe-demo.mp4")
    assert shown.exit_code == 0
    assert "37" in shown.stdout
    facts = json.loads(run("info", "isoframe-demo.mp4", "--json").stdout)
    assert facts["num_frames"] == 37
    assert facts["metadata"]["request"]["seed"] == 7


def test_other_existing_file_is_not_replaced(folder: Path) -> None:
    (folder / "mine.mp4").write_bytes(b"precious")
    result = run("demo", "--out", "mine.mp4")
    assert result.exit_code == 1
    assert "error: output mine.mp4 exists; pass --overwrite" in result.stderr
    assert (folder / "mine.mp4").read_bytes() == b"precious"


def start(folder: Path, *arguments: str, libraries: str = "") -> "subprocess.Popen[str]":
    """The command in a process of its own, with an empty folder for temporary files beside ``folder``;
    ``libraries`` hide installed ones."""
    temporary = folder.parent / "temp"
    temporary.mkdir()
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "isoframe.engine.interfaces.commands", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{SOURCES}{os.pathsep}{libraries}", "TMPDIR": str(temporary)},
    )


@pytest.mark.parametrize(
    ("number", "exit_code", "summary"),
    [(signal.SIGINT, 130, "cancelled"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_a_stopped_job_leaves_a_playable_part_its_folder_and_nothing_else(
    folder: Path, number: int, exit_code: int, summary: str
) -> None:
    image, prompt = find_example(None)
    process = start(
        folder, "generate", str(image), "--prompt", prompt, "--seconds", "30", "--steps", "1", "--out", "out.mp4",
        "--json-progress",
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "section":
            process.send_signal(number)
            break
    output, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code
    part = read_video_info(folder / "out.partial.mp4")
    assert 0 < part.num_frames < 901
    (job,) = (folder.parent / "cache" / "jobs").iterdir()
    notes = [
        f"finished sections are kept in {job}; to go on: isoframe resume {job}",
        f"{part.num_frames} of 901 frames are kept in out.partial.mp4",
    ]
    assert errors.endswith("\n".join([summary, *notes, ""]))
    partial, cancelled = (json.loads(line) for line in output.splitlines()[-2:])
    assert (partial["event"], partial["num_frames"]) == ("partial", part.num_frames)
    assert (cancelled["event"], cancelled["notes"]) == ("cancelled", notes)
    assert os.listdir(folder) == ["out.partial.mp4"]
    assert os.listdir(folder.parent / "temp") == []


def test_interrupt_while_libraries_are_imported_is_no_traceback(folder: Path) -> None:
    (folder.parent / "slow").mkdir()
    # A library of ours that is imported first, and takes its time.
    (folder.parent / "slow" / "typer.py").write_text(
        "print('importing', flush=True)\nimport time\ntime.sleep(60)\n"
    )
    process = start(folder, "demo", libraries=str(folder.parent / "slow"))
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "cancelled\n")


def test_unknown_example_suggests_the_nearest() -> None:
    name = find_example(None)[0].stem
    result = run("demo", "--example", name + "x")
    assert result.exit_code == 2
    assert f"did you mean {name!r}?" in result.stderr


def test_info_describes_the_built_in_model() -> None:
    facts = json.loads(run("info", "demo", "--json").stdout)
    assert facts["name"] == "demo"
    assert facts["num_parameters"] > 10**6
    assert facts["config"]["attention_head_dim"] == 64


@pytest.mark.parametrize(
    ("name", "message", "exit_code"),
    [("no.mp4", "missing", 1), ("no.safetensors", "no.safetensors", 2), ("demmo", "'demo'?", 2)],
)
def test_info_on_nothing_is_one_line(name: str, message: str, exit_code: int) -> None:
    result = run("info", name)
    assert result.exit_code == exit_code
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_info_on_a_damaged_video_is_one_line(folder: Path) -> None:
    (folder / "bad.mp4").write_bytes(b"\0" * 100)
    result = run("info", "bad.mp4")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: video must be readable, bad.mp4 is not")
