"""Many clients of a server process that is killed in the middle: what became of every job, and what the server took.

Run as ``server_load.py FOLDER NUM_JOBS NUM_CLIENTS [KILL_AT...]`` for the figures as JSON.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from PIL import Image

from isoframe.engine import Request
from isoframe.engine.interfaces.client import Client, ServerError

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 60


class ServerProcess:
    """``isoframe serve`` on one port and one folder, started again after every kill."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.port = 0

    def start(self) -> None:
        """Return when it can be reached."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT / ".src"), "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable, "-P", "-m", "isoframe.engine.interfaces.commands", "serve", "--port", str(self.port),
            "--data", str(self._folder / "data"), "--cache-dir", str(self._folder / "cache"),
            "--device", "cpu", "--max-queue", "8",
        ]  # fmt: skip
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), (line, self.log())
        self.url = line.split()[0]
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """As the kernel does for want of memory."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Its exit code."""
        return self._end(signal.SIGTERM)

    def rss(self) -> int:
        """Bytes; 0 while it does not run."""
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss) if self._process else 0
        except psutil.NoSuchProcess:
            return 0

    def log(self) -> str:
        return (self._folder / "server.log").read_text()

    def _end(self, number: int) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(TIMEOUT)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return code


@dataclass
class Load:
    """What happened.

    Attributes:
        ends: of every job by its id: the state asked for and the one it has.
        refused: times that the queue was full.
        rss_bytes: of the server after every job, in the order in which they ended, for every start of its own.
        health_seconds: of every question for its health that was answered.
    """

    ends: dict[str, tuple[str, str]] = field(default_factory=dict)
    refused: int = 0
    rss_bytes: list[list[int]] = field(default_factory=lambda: [[]])
    health_seconds: list[float] = field(default_factory=list)

    @property
    def p95_health_seconds(self) -> float:
        ordered = sorted(self.health_seconds)
        return ordered[int(0.95 * len(ordered))]


def run_load(folder: Path, *, num_jobs: int, num_clients: int, kill_at: Sequence[int]) -> Load:
    """Have ``num_clients`` ask for videos, every fifth of which they cancel; kill the server.

    Args:
        folder: of the server.
        num_jobs: to ask for.
        num_clients: at a time.
        kill_at: how many jobs have ended before each kill.
    """
    load, server = Load(), ServerProcess(folder)
    server.start()
    # With the first one the companions of the model are loaded.
    warm = Client(server.url)
    warm.delete(warm.wait(str(warm.create(_request(0, num_steps=1))["id"]))["id"])
    numbers, lock, is_over = iter(range(num_jobs)), threading.Lock(), threading.Event()

    def work() -> None:
        client = Client(server.url, patience=TIMEOUT)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            _do_job(client, number, load, lock, server)

    def watch() -> None:
        client = Client(server.url, timeout=5)
        while not is_over.wait(0.05):
            start = time.perf_counter()
            try:
                client._json("GET", "/healthz")
            except OSError:
                continue
            load.health_seconds.append(time.perf_counter() - start)

    threads = [threading.Thread(target=work) for _ in range(num_clients)]
    with _running(threading.Thread(target=watch), is_over), _running_all(threads):
        for num_ended in kill_at:
            while len(load.ends) < num_ended and any(thread.is_alive() for thread in threads):
                time.sleep(0.01)
            server.kill()
            server.start()
            with lock:
                load.rss_bytes.append([])
    assert server.stop() == 143, server.log()
    return load


def _do_job(client: Client, number: int, load: Load, lock: threading.Lock, server: ServerProcess) -> None:
    is_cancelled = number % 5 == 4
    request = _request(number, num_steps=100 if is_cancelled else 2)
    name = str(_create(client, request, load, lock)["id"])
    if is_cancelled:
        _again(lambda: client.cancel(name))
    state = client.wait(name)["status"]
    with lock:
        load.ends[name] = ("cancelled" if is_cancelled else "completed", state)
        load.rss_bytes[-1].append(server.rss())


def _request(number: int, num_steps: int) -> Request:
    """One section."""
    return Request(
        image=Image.new("RGB", (64, 64), (number % 256, 60, 40)), prompt="a red circle bounces", seed=number,
        seconds=1.2, num_steps=num_steps,
    )  # fmt: skip


def _create(client: Client, request: Request, load: Load, lock: threading.Lock) -> dict[str, object]:
    deadline = time.monotonic() + 10 * TIMEOUT
    while time.monotonic() < deadline:
        try:
            return client.create(request)
        except ServerError as error:
            if error.status != 429:
                raise
            with lock:
                load.refused += 1
        except OSError:
            # It may have been taken all the same: then it is a job that nobody waits for.
            pass
        time.sleep(random.uniform(0.05, 0.3))
    raise TimeoutError(client)


def _again(ask: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            ask()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextmanager
def _running(thread: threading.Thread, is_over: threading.Event) -> Iterator[None]:
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(TIMEOUT)


@contextmanager
def _running_all(threads: list[threading.Thread]) -> Iterator[None]:
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(10 * TIMEOUT)


def figures(load: Load) -> dict[str, object]:
    """What is worth telling."""
    # The first jobs of a process warm it up.
    rss = [bytes / 2**20 for bytes in load.rss_bytes[-1][10:]]
    return {
        "num_jobs": len(load.ends),
        "num_as_asked": sum(asked == state for asked, state in load.ends.values()),
        "num_cancelled": sum(state == "cancelled" for _, state in load.ends.values()),
        "num_refused": load.refused,
        "num_health_answers": len(load.health_seconds),
        "p95_health_ms": 1000 * load.p95_health_seconds,
        "max_health_ms": 1000 * max(load.health_seconds),
        "num_warm_jobs_of_last_process": len(rss),
        "rss_mib_of_their_first_20": sum(rss[:20]) / 20,
        "rss_mib_of_their_last_20": sum(rss[-20:]) / 20,
        "rss_mib": [[round(bytes / 2**20) for bytes in run] for run in load.rss_bytes],
    }


if __name__ == "__main__":
    jobs, clients, *kills = (int(argument) for argument in sys.argv[2:])
    done = run_load(Path(sys.argv[1]), num_jobs=jobs, num_clients=clients, kill_at=kills)
    json.dump(figures(done), sys.stdout)
