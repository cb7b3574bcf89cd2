"""Many clients at once, and a server that is killed in the middle."""

import os
from pathlib import Path

import pytest
from server_load import Load, run_load

from isoframe.engine.jobs.folder import JobFolder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")]
# Of a process, after the jobs that warm it up.
MAX_GROWTH_BYTES = 30 * 2**20
NUM_WARM_UP = 10


def check(load: Load, folder: Path, num_jobs: int) -> None:
    assert len(load.ends) == num_jobs
    assert {name: ends for name, ends in load.ends.items() if ends[0] != ends[1]} == {}
    assert "cancelled" in {asked for asked, _ in load.ends.values()}
    assert load.p95_health_seconds < 0.1, load.p95_health_seconds
    # A job may have been taken while its answer was lost: it is made all the same.
    jobs = [path for path in (folder / "data" / "jobs").iterdir() if path.name in load.ends]
    assert len(jobs) == num_jobs
    for job in jobs:
        is_done = load.ends[job.name][1] == "completed"
        assert JobFolder.open(job).status().is_done == is_done
        assert (job / "video.mp4").exists() == is_done
        assert list(job.rglob("*.tmp")) == []


def mean(values: list[int]) -> float:
    return sum(values) / len(values)


@pytest.mark.alone
def test_clients_lose_no_job_when_the_server_is_killed(tmp_path: Path) -> None:
    check(run_load(tmp_path, num_jobs=10, num_clients=4, kill_at=[5]), tmp_path, 10)


@pytest.mark.soak
def test_sixteen_clients_lose_no_job_in_two_restarts_and_memory_is_flat_over_the_100_after_them(
    tmp_path: Path,
) -> None:
    load = run_load(tmp_path, num_jobs=160, num_clients=16, kill_at=[20, 40])
    check(load, tmp_path, 160)
    assert load.refused > 0
    rss = load.rss_bytes[-1][NUM_WARM_UP:]
    assert len(rss) >= 100
    assert mean(rss[-20:]) - mean(rss[:20]) < MAX_GROWTH_BYTES
