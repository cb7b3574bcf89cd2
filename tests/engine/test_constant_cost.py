"""The built-in model's promises, in a process of its own: time, memory and bytes written."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "engine" / "demo" / "examples"
# Counts what the process writes, to every file and stream.
COUNT = """
import json, sys
from pathlib import Path

def bytes_written():
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["wchar"])

before = bytes_written()
"""
COMMAND = """
from isoframe.engine.interfaces.commands.command_line import build_app

build_app()(["demo", "--quiet"], standalone_mode=False)
report = {"bytes_written": bytes_written() - before, "file_bytes": Path("isoframe-demo.mp4").stat().st_size}
# Not getrusage: its maximum begins with what the process held that started this one.
status = open("/proc/self/status").read()
report["peak_rss"] = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps(report))
"""
MINUTE = """
import psutil
from isoframe.engine import Engine, EngineConfig, Request, SectionEvent

rss = []
def on_event(event):
    if isinstance(event, SectionEvent):
        rss.append(psutil.Process().memory_info().rss)

# Neither memory nor bytes depend on the number of steps.
request = Request(image=sys.argv[1], prompt="a red circle moves right", seconds=60, num_steps=2)
video = Engine.load("demo", config=EngineConfig(device="cpu")).render(request, "out.mp4", on_event=on_event)
report = {"bytes_written": bytes_written() - before, "file_bytes": video.path.stat().st_size, "rss": rss}
print(json.dumps(report | {"num_frames": video.num_frames}))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux' /proc")


def run(folder: Path, script: str, *arguments: object) -> dict[str, Any]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / ".src"),
        "ISOFRAME_CACHE": str(folder / "cache"),
        # Compiled modules are written once per installation, not per job.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-P", "-c", COUNT + script, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.mark.alone
def test_the_demo_takes_at_most_thirty_seconds_and_stays_small(tmp_path: Path) -> None:
    start = time.perf_counter()
    report = run(tmp_path, COMMAND)
    assert time.perf_counter() - start <= 30
    assert report["peak_rss"] <= 1.5 * 2**30
    assert report["bytes_written"] <= 2.2 * report["file_bytes"]


def growth_over_a_minute(folder: Path) -> int:
    """Bytes that the resident set grew by from the fifth to the last of 50 sections."""
    folder.mkdir()
    report = run(folder, MINUTE, min(EXAMPLES.glob("*.png")))
    assert report["num_frames"] == 1801
    assert len(report["rss"]) == 50
    assert report["bytes_written"] <= 2.2 * report["file_bytes"]
    growth: int = report["rss"][-1] - report["rss"][4]
    return growth


@pytest.mark.slow
def test_a_minute_needs_no_more_memory_than_five_sections(tmp_path: Path) -> None:
    growths, limit = [growth_over_a_minute(tmp_path / "0")], 40 * 2**20
    if growths[0] > limit:
        # What the allocator keeps of freed memory differs by tens of MiB from run to run: the median of three counts.
        growths += [growth_over_a_minute(tmp_path / name) for name in ("1", "2")]
    assert statistics.median(growths) <= limit
