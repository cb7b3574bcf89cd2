"""The timeline of the weights as files: the same events as a trace and as a chart."""

import importlib.util
import json
from pathlib import Path

import pytest
from block_paces import block_paces
from typer.testing import CliRunner

from isoframe.engine.errors import ConfigError, InputError
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.planning.ring import RingSchedule
from isoframe.engine.weights.timeline_file import check_timeline_path, write_timeline
from isoframe.engine.weights.unit_timeline import UnitTiming, last_passes
from isoframe.engine.weights.virtual_clock import simulate


@pytest.fixture
def timings() -> list[UnitTiming]:
    """Three passes of six units; copies are slower than compute."""
    blocks = block_paces(2, 2, projections=(0.1, 0.1), attention=0.5, rests=(0.2, 0.1), single=0.5)
    return simulate(RingSchedule(6, ring=3, residents=(1,)), blocks, copy_seconds=[1.0] * 6, num_passes=3)


def test_the_trace_has_every_copy_use_and_wait(timings: list[UnitTiming], tmp_path: Path) -> None:
    write_timeline(timings, tmp_path / "new" / "trace.json")
    events = json.loads((tmp_path / "new" / "trace.json").read_text())["traceEvents"]
    tracks = [event["tid"].split()[0] for event in events]
    assert tracks.count("compute") == 18
    assert tracks.count("copy") == 5 * 3 + 1
    waits = sum(timing.compute_start > timing.wanted for timing in timings)
    assert tracks.count("wait") == waits > 0


def test_the_chart_shows_copies_uses_and_waits_of_the_last_two_passes(
    timings: list[UnitTiming], tmp_path: Path
) -> None:
    write_timeline(timings, tmp_path / "chart.svg")
    svg = (tmp_path / "chart.svg").read_text()
    for text in (
        "copies",
        "compute",
        "copy of a unit",
        "use of a resident unit",
        "wait for a unit",
        "12 uses",
    ):
        assert text in svg
    write_timeline(timings, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert len(last_passes(timings, 2)) == 12
    assert last_passes(timings[:6], 2) == timings[:6]


def test_other_files_and_a_missing_matplotlib_are_refused_before_anything_is_made(
    timings: list[UnitTiming], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"a trace must be a \.json file .*, got trace\.txt"):
        check_timeline_path(Path("trace.txt"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError):
        write_timeline(timings, tmp_path / "file" / "trace.json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_timeline_path(Path("trace.json"))
    with pytest.raises(
        ConfigError, match=r"needs matplotlib: pip install matplotlib, or the extra isoframe\[bench\]"
    ):
        check_timeline_path(Path("chart.svg"))


def test_a_plan_is_drawn(tmp_path: Path) -> None:
    arguments = [
        "plan",
        "--card",
        "RTX 3060 Laptop",
        "--precision",
        "int8",
        "--ram",
        "16GiB",
        "--size",
        "640x608",
    ]
    traces = [tmp_path / "plan.svg", tmp_path / "plan.json"]
    result = CliRunner().invoke(build_app(), [*arguments, *(f"--trace={path}" for path in traces)])
    assert result.exit_code == 0, result.output
    assert "compute waits 0 s (0.0%)" in traces[0].read_text()
    assert len(json.loads(traces[1].read_text())["traceEvents"]) > 3 * 80
    result = CliRunner().invoke(build_app(), [*arguments, "--trace", "plan.txt"])
    assert result.exit_code == 2
    assert "a trace must be a .json file" in " ".join(result.stderr.split())
