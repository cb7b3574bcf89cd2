"""Work of every kind that is killed or meets a fault, and is then done again; writes what became of it to stdout as JSON.

Each try is a process of its own, forked from one that has the model loaded. Run as ``faulty_work.py FOLDER TRIES SEED`` with one
thread, where TRIES are as many of each kind of work and hazard.
"""

import builtins
import errno
import io
import json
import os
import random
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pydantic  # noqa: F401  # before memory lacks
import torch
from killed_jobs import Killer, exit_code, kill_at_write, start
from tiny_models import saved_model

from isoframe.bench.quality.codebook_fit import fit_codebook, save_codebook
from isoframe.engine import IsoframeError
from isoframe.engine.families.opening import open_transformer
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.interfaces.server.videos.workers import LocalWorkers
from isoframe.engine.media.exports import export_video
from isoframe.engine.weights.conversion import convert
from isoframe.quant.named_formats import make_format

REFUSED = 3
MAX_SECONDS = 60
# Calls that write, about; of a work that is not here, 5.
NUM_WRITES = {"generate": 50, "convert": 40, "extras": 40, "service": 60}
Work = Callable[[Path], object]


def is_writing(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    mode = options.get("mode", args[1] if len(args) > 1 else "r")
    return isinstance(mode, str) and bool(set(mode) & set("wax+"))


def fail_at(number: int, code: int) -> None:
    """Have the ``number``-th of the calls that write fail: opening for it, syncs, renames, folders, links."""
    calls = iter(range(1_000_000))

    def failing(function: Callable[..., Any], *, is_open: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if (not is_open or is_writing(args, options)) and next(calls) == number:
                raise OSError(code, os.strerror(code))
            return function(*args, **options)

        return call

    builtins.open = io.open = failing(io.open, is_open=True)  # type: ignore[assignment]
    for name in ("fsync", "replace", "mkdir", "link", "posix_fallocate", "truncate"):
        setattr(os, name, failing(getattr(os, name)))


def limit_files(num_bytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def limit_handles(number: int) -> None:
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + number, used + number))


def limit_memory(num_bytes: int) -> None:
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + num_bytes, used + num_bytes))


def limit_threads(number: int) -> None:
    calls, begin = iter(range(1_000_000)), threading.Thread.start

    def call(self: threading.Thread) -> None:
        if next(calls) == number:
            raise RuntimeError("can't start new thread")
        begin(self)

    threading.Thread.start = call  # type: ignore[method-assign]


# By the number of writes that the work has.
FAULTS: dict[str, Callable[[random.Random, int], None]] = {
    "full-disk": lambda chance, most: fail_at(chance.randrange(most), errno.ENOSPC),
    "bad-disk": lambda chance, most: fail_at(chance.randrange(most), errno.EIO),
    "file-size": lambda chance, _: limit_files(int(2 ** chance.uniform(6, 18))),
    "handles": lambda chance, _: limit_handles(chance.randrange(8)),
    "threads": lambda chance, _: limit_threads(chance.randrange(3)),
    "memory": lambda chance, _: limit_memory(int(2 ** chance.uniform(16, 26))),
}


def attempt(work: Callable[[], object]) -> None:
    """Do the work in a process that ends with REFUSED where it is refused by an error of the engine."""
    try:
        work()
    except IsoframeError as error:
        sys.stderr.write(f"refused: {error}\n")
        os._exit(REFUSED)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def faulty(
    make_fault: Callable[[random.Random, int], None], most: int, seed: float
) -> Callable[[Callable[[], object]], int]:
    def run(work: Callable[[], object]) -> int:
        def do() -> None:
            make_fault(random.Random(seed), most)
            work()

        return exit_code(start(lambda: attempt(do)))

    return run


class Works:
    """The kinds of work; what each has made stays in its folder, and doing it again finishes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.killer = killer = Killer(folder, 1, 1)
        saved_model(folder / "model")
        self.checkpoint = open_transformer(folder / "model")
        self.points = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
        video = folder / "straight" / "video.mp4"
        self.kinds: dict[str, Work] = {
            "generate": killer.render,
            "extras": lambda to: killer.engine.render(
                killer.request,
                to / "video.mp4",
                overwrite=True,
                png_dir=to / "png",
                latents_path=to / "l.safetensors",
            ),
            "export-gif": lambda to: export_video(video, to / "out.gif", overwrite=True),
            "export-mp4": lambda to: export_video(video, to / "out.mp4", crf=30, overwrite=True),
            "convert": lambda to: convert(self.checkpoint, make_format("int8", torch.float32), to / "store"),
            "service": self._serve,
            "codebook": lambda to: save_codebook(
                to / "book.safetensors", fit_codebook(self.points, 4), ["a"]
            ),
        }
        self.expected = {}
        for kind, work in self.kinds.items():
            to = folder / f"whole-{kind}"
            to.mkdir()
            # Only processes of one thread may be forked: none starts here.
            assert exit_code(start(lambda work=work, to=to: work(to))) == 0, kind  # type: ignore[misc]
            self.expected[kind] = contents(to)

    def _serve(self, to: Path) -> None:
        """Start a service, as server and app have it, ask for a video once, and wait for all that it has."""
        with VideoService(LocalWorkers(self.killer.engine), to / "data") as service:
            if not service.page():
                service.create(self.killer.request)
            ends = [service.wait(video.id, MAX_SECONDS) for video in service.page()]
            # One that failed for want of something is taken up again, as its user would.
            ends = [service.wait(service.resume(video.id).id, MAX_SECONDS) for video in ends]
        for video in ends:
            if video.failure is not None:
                raise IsoframeError(video.failure.message)

    def trial(self, name: str, kind: str, hazard: Callable[[Callable[[], object]], int]) -> dict[str, Any]:
        """Do the work under a hazard, then once more without."""
        to, begun = self.folder / name, time.perf_counter()
        to.mkdir()
        met = hazard(lambda: self.kinds[kind](to))
        seconds = time.perf_counter() - begun
        again = exit_code(start(lambda: attempt(lambda: self.kinds[kind](to))))
        return {
            "name": name,
            "met": met,
            "again": again,
            "is_same": contents(to) == self.expected[kind],
            "left": sorted(str(path.relative_to(to)) for path in to.rglob("*") if path.name.endswith(".tmp")),
            "hung": seconds > MAX_SECONDS,
        }


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder that does not differ between two jobs; a service draws the name of its only video."""
    return {
        re.sub(r"video_[0-9a-f]{24}", "video", str(path.relative_to(folder))): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in ("lock", "job.json", "done.json", "asked.json", "end.json")
        and path.suffix not in (".lock", ".tmp")
        and re.search(r"\.partial|^isoframe-", path.name) is None
    }


def run(folder: Path, tries: int, seed: int) -> Iterator[dict[str, Any]]:
    works, chance = Works(folder), random.Random(seed)
    for index in range(tries):
        for kind in works.kinds:
            most = NUM_WRITES.get(kind, 5)
            number = chance.randrange(2 * most)
            yield works.trial(
                f"kill-{kind}-{index}", kind, lambda work, number=number: kill_at_write(number, work)
            )
            for fault, make in FAULTS.items():
                yield works.trial(f"{fault}-{kind}-{index}", kind, faulty(make, most, chance.random()))


if __name__ == "__main__":
    json.dump(list(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))), sys.stdout)
