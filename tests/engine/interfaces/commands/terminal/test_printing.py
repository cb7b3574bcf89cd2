"""Text of users and of foreign files on the terminal: read, never obeyed."""

import io
import json
import logging
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from isoframe.engine.events import JobEvent, PromptSlot
from isoframe.engine.interfaces.checkup import Check
from isoframe.engine.interfaces.commands import doctor as doctor_command
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.interfaces.commands.doctor import doctor
from isoframe.engine.interfaces.commands.terminal.printing import PlainConsole, PlainFormatter, printable
from isoframe.engine.interfaces.commands.terminal.progress import Reporter

SOURCES = Path(__file__).resolve().parents[5] / ".src"
HOSTILE = [
    "[/red]",
    "[bold]loud[/bold]",
    "[link=http://elsewhere.example]here[/link]",
    ":skull:",
    "\x1b]52;c;ZXZpbA==\x07",
    "\x1b[2J\x1b[H",
    "\x9b2J",
    "\x90q\x9c",
    "a\rb",
    "a\x08b",
    "\x7f",
    "\u202egpj.exe\u202c",
    "\u2066a\u2069",
    "\u200e\u200f\u061c",
    "\u2028\u2029",
    "\ufeff\u00ad\U000e0041",
    "\ud800",
]
FORBIDDEN = {*map(chr, range(32)), *map(chr, range(127, 160))} - {"\n", "\t"}


def assert_harmless(shown: str) -> None:
    assert not FORBIDDEN & set(shown)
    assert not [one for one in shown if unicodedata.category(one) in ("Cf", "Cs", "Zl", "Zp")]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_text_is_obeyed(text: str) -> None:
    assert_harmless(printable(text))
    assert "\n" not in printable(f"{text}\n", is_line=True)
    for console in (
        PlainConsole(file=io.StringIO()),
        PlainConsole(file=io.StringIO(), force_terminal=True, color_system=None),
    ):
        console.print(text)
        shown = console.file.getvalue()  # type: ignore[attr-defined]  # StringIO
        assert_harmless(shown)
        assert shown == printable(text) + "\n"
    record = logging.LogRecord("a", logging.WARNING, "", 0, "%s", (text,), None)
    assert_harmless(PlainFormatter("%(message)s").format(record))


def test_what_people_write_stays_as_it_is() -> None:
    for text in (
        "Grüße, 世界　今日",
        "שלום",
        "👩‍👩‍👧",
        "می‌خواهم",
        "a b",
        "1\t2\n3",
        "[0s] she sits [2.4s] she waves",
    ):
        assert printable(text) == text


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_progress_takes_any_prompt_and_path(text: str) -> None:
    event = JobEvent(
        num_frames=5, num_sections=1, fps=30, height=64, width=64, seconds=0.2, requested_seconds=0.2, image_height=64,
        image_width=64, job_dir=Path(f"/tmp/{text}"), order="inverted",
        prompts=(PromptSlot(start_seconds=0.0, end_seconds=0.2, sections=(0,), text=text),),
    )  # fmt: skip
    console = PlainConsole(file=io.StringIO(), width=200)
    with Reporter(console, 30) as reporter:
        reporter.on_event(event)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # StringIO
    assert_harmless(shown)
    assert shown.count(printable(text)) >= 1


def make_video(path: Path, **metadata: str) -> Path:
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(metadata)
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for frame in [av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))]:
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_info_shows_the_metadata_of_a_foreign_file(tmp_path: Path) -> None:
    texts = [text for text in HOSTILE if text != "\ud800"]
    for number, text in enumerate(texts):
        metadata = {"title": text, "comment": json.dumps({"isoframe": "1", text: text})}
        path = make_video(tmp_path / f"{number}.mp4", **metadata)
        shown = CliRunner().invoke(build_app(), ["info", str(path)])
        assert_harmless(shown.output)
        told = CliRunner().invoke(build_app(), ["info", str(path), "--json"])
        if told.exit_code == 0:
            json.loads(told.output)


@pytest.mark.parametrize("text", [text for text in HOSTILE if text != "\ud800"], ids=ascii)
def test_errors_and_usage_errors_show_arguments(text: str) -> None:
    for arguments in (
        ["info", f"/nowhere/{text}.mp4"],
        ["resume", f"/nowhere/{text}"],
        ["generate", f"--no{text}"],
        [f"no{text}"],
        ["plan", "--card", text],
        ["generate", "--image", f"/nowhere/{text}", "--prompt", text],
    ):
        shown = CliRunner().invoke(build_app(), arguments)
        assert shown.exit_code in (1, 2)
        assert isinstance(shown.exception, SystemExit)
        assert_harmless(shown.output)


def test_doctor_shows_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Check("disk", "note", text, text) for text in HOSTILE]
    monkeypatch.setattr("isoframe.engine.interfaces.checkup.examine", lambda *_: iter(found))
    shown = CliRunner().invoke(build_app(), ["doctor", "--device", "cpu"])
    assert shown.exit_code == 0
    assert_harmless(shown.output)
    assert shown.output.count("[/red]") == 2
    assert doctor_command.doctor is doctor


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_terminal_that_cannot_encode_gets_escapes(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "世界 \x1b[2J.mp4"
    for arguments, code in (
        (["info", str(path)], 1),
        (["--help"], 0),
        (["plan", "--model", "demo", "--vram", "6GiB"], 0),
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "isoframe.engine.interfaces.commands", *arguments],
            env=os.environ | {"PYTHONPATH": str(SOURCES), "PYTHONIOENCODING": encoding}, capture_output=True, timeout=120,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr
        assert done.returncode == code
        shown = done.stdout + done.stderr
        shown.decode(encoding)
        assert b"\x1b" not in shown
        if "info" in arguments and encoding != "utf-8":
            assert b"\\u4e16" in shown
