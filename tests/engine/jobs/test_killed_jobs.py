"""Jobs that are killed with SIGKILL at any time, and resumed by another process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "tests" / "oracles" / "killed_jobs.py"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")]


def killed_jobs(
    folder: Path, num_random: int, num_writes: int, window: int, steps: int
) -> list[dict[str, Any]]:
    # Only processes of one thread may be forked.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".src"), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-P",
        str(SCRIPT),
        str(folder),
        *map(str, (num_random, num_writes, window, steps)),
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    trials: list[dict[str, Any]] = json.loads(result.stdout)
    return trials


def check(trials: list[dict[str, Any]], tell: Callable[[str], None]) -> None:
    killed = [trial["killed"] for trial in trials].count(-9)
    for trial in trials:
        assert trial["resumed"] == 0, trial
        assert trial["same_latents"], trial
        assert trial["same_file"], trial
        assert trial["left"] == [], trial
        assert trial["files"] == ["job", "video.mp4"], trial
        assert trial["processes"] == 0, trial
    # Most kills came in time, some of them between two sections.
    assert killed > len(trials) / 2
    assert any(0 < trial["finished"] < 6 for trial in trials)
    tell(f"{killed} killed jobs were resumed bit for bit, 0 lost")


def test_killed_jobs_are_resumed_bit_for_bit(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """Six sections; killed at 12 random times, five times in a row, and at 4 of the writes to the disk."""
    trials = killed_jobs(tmp_path, 12, 4, 1, 2)
    assert len(trials) == 17
    check(trials, tell)


@pytest.mark.soak
def test_many_killed_jobs_are_resumed_bit_for_bit(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """At 16 random times with longer sections, and at all writes to the disk; both at once."""
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(killed_jobs, tmp_path / "long", 16, 1, 4, 4)
        writes = pool.submit(killed_jobs, tmp_path / "writes", 1, 100, 1, 1)
    check(long.result(), tell)
    check(writes.result(), tell)
