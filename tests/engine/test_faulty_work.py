"""Work that is killed, or meets a full disk or too few handles, threads or memory: nothing is lost, and it says why."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORACLES = ROOT / "tests" / "oracles"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs fork, SIGKILL and limits"),
]


def faulty_work(folder: Path, tries: int, seed: int) -> list[dict[str, Any]]:
    # Only processes of one thread may be forked.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT / ".src"), str(ORACLES))),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-P", str(ORACLES / "faulty_work.py"), str(folder), str(tries), str(seed)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    # What was refused, and why, is read here.
    (folder / "stderr.txt").write_text(result.stderr)
    trials: list[dict[str, Any]] = json.loads(result.stdout)
    return trials


def check(trials: list[dict[str, Any]], tell: Callable[[str], None]) -> None:
    met = Counter(
        (trial["name"].rpartition("-")[0].partition("-")[0], trial["met"]) for trial in trials if trial["met"]
    )
    tell(f"{len(trials)} works under a kill or a fault; met and how they ended: {dict(met)}")
    assert [trial["name"] for trial in trials if trial["met"] not in (0, 3, -9)] == [], "tracebacks"
    assert [trial["name"] for trial in trials if trial["again"] != 0] == []
    assert [trial["name"] for trial in trials if not trial["is_same"]] == []
    assert [(trial["name"], trial["left"]) for trial in trials if trial["left"]] == []
    assert [trial["name"] for trial in trials if trial["hung"]] == []


def test_work_that_meets_a_fault_is_refused_or_done_and_done_again_is_the_same(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    check(faulty_work(tmp_path, 1, 1), tell)


@pytest.mark.soak
def test_work_that_meets_many_faults_is_refused_or_done_and_done_again_is_the_same(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """At least 100 kills and 100 faults that come in time."""
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        trials = [trial for part in pool.map(faulty_work, folders, (12, 12), (1, 2)) for trial in part]
    check(trials, tell)
    met = [trial["met"] for trial in trials]
    assert met.count(-9) >= 100
    assert len([code for code in met if code == 3]) >= 100
