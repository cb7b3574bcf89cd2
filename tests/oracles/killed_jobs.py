"""Kills jobs with SIGKILL and resumes them, each in a process of its own; writes what became of them to stdout as JSON.

The processes are forked from one that has the model loaded. Run as
``killed_jobs.py FOLDER NUM_RANDOM NUM_WRITES WINDOW STEPS``, with one thread.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from isoframe.engine import Engine, EngineConfig, Request
from isoframe.engine.jobs.folder import JobFolder

NUM_SECTIONS = 6
# Syncs and renames of one job, about.
NUM_WRITES = 50


def start(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process; its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def exit_code(pid: int) -> int:
    """Of the process once it has ended; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(seconds: float, work: Callable[[], object]) -> int:
    """Exit code of a process that is killed after some time, unless it was faster."""
    pid = start(work)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return exit_code(pid)


def kill_often(seconds: float, work: Callable[[], object]) -> int:
    """Exit code of the last of several processes, each killed sooner or later."""
    return [kill_after(random.uniform(0, seconds), work) for _ in range(5)][-1]


def kill_at_write(number: int, work: Callable[[], object]) -> int:
    """Exit code of a process that is killed just before (even numbers) or after its ``number // 2``-th sync or rename."""

    def doomed() -> None:
        calls = iter(range(1_000_000))

        def die_in(function: Callable[..., object]) -> Callable[..., object]:
            def call(*args: Any, **options: Any) -> object:
                is_last = next(calls) == number // 2
                if is_last and number % 2 == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = function(*args, **options)
                if is_last:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        os.fsync, os.replace = die_in(os.fsync), die_in(os.replace)  # type: ignore[assignment]
        work()

    return exit_code(start(doomed))


class Killer:
    """One model, one request, and what an uninterrupted job makes of it."""

    def __init__(self, folder: Path, window: int, steps: int) -> None:
        self.folder = folder
        self.engine = Engine.load(
            "demo", config=EngineConfig(device="cpu", cache_dir=folder / "cache", local_files_only=True)
        )
        image = Path(sys.modules["isoframe.engine"].__path__[0]) / "demo" / "examples" / "bounce.png"
        self.request = Request(
            image=image,
            prompt="a red circle bounces",
            seconds=4 * window * NUM_SECTIONS / 30,
            num_steps=steps,
            latent_window_size=window,
            # Small: most of the time of a run went into decoding frames.
            size=(32, 32),
        )
        # The first one also fills the cache of embeddings, which the others find.
        self.render(folder / "warm")
        begun = time.perf_counter()
        self.render(folder / "straight")
        self.seconds = time.perf_counter() - begun

    def render(self, folder: Path) -> None:
        """Start the job, or go on with it."""
        job_dir = folder / "job"
        if (job_dir / "job.json").exists():
            self.engine.resume(job_dir)
        else:
            self.engine.render(self.request, folder / "video.mp4", job_dir=job_dir)

    def trial(self, name: str, kill: Callable[[Callable[[], object]], int]) -> dict[str, Any]:
        """Kill a job, resume it, and compare it with the uninterrupted one."""
        folder, straight = self.folder / name, self.folder / "straight"
        killed = kill(lambda: self.render(folder))
        job_dir = folder / "job"
        is_job = (job_dir / "job.json").exists()
        finished = JobFolder.open(job_dir).status().num_finished_sections if is_job else 0
        resumed = exit_code(start(lambda: self.render(folder)))
        return {
            "name": name,
            "killed": killed,
            "finished": finished,
            "resumed": resumed,
            "same_file": (folder / "video.mp4").read_bytes() == (straight / "video.mp4").read_bytes(),
            "same_latents": contents(job_dir) == contents(straight / "job"),
            "left": sorted(path.name for path in folder.rglob("*") if path.name.endswith(".tmp")),
            "files": sorted(path.name for path in folder.iterdir()),
            "processes": len(psutil.Process().children(recursive=True)),
        }


def contents(job_dir: Path) -> dict[str, bytes]:
    """Latents and states of the noise of all sections."""
    return {path.name: path.read_bytes() for path in job_dir.glob("section_*.safetensors")}


def run(folder: Path, num_random: int, num_writes: int, window: int, steps: int) -> Iterator[dict[str, Any]]:
    killer = Killer(folder, window, steps)
    # Not seeded: another run kills at other times.
    for number in range(num_random):
        seconds = random.uniform(0, killer.seconds)
        yield killer.trial(f"random-{number}", lambda work, seconds=seconds: kill_after(seconds, work)) | {
            "seconds": seconds
        }
    yield killer.trial("often", lambda work: kill_often(killer.seconds / 2, work))
    for number in random.sample(range(2 * NUM_WRITES), num_writes):
        yield killer.trial(f"write-{number}", lambda work, number=number: kill_at_write(number, work))


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[2:]]
    json.dump(list(run(Path(sys.argv[1]), *arguments)), sys.stdout)
