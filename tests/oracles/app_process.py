"""The app in a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / ".src"


@contextmanager
def running_app(cache: Path, *arguments: str, **variables: str) -> Iterator[str]:
    """Address of the demo model's page; on leaving it is stopped as Ctrl-C does, and says so.

    Args:
        cache: folder of the caches, and of the videos.
        arguments: further ones of ``isoframe app``.
        variables: of the environment.
    """
    program = (sys.executable, "-P", "-m", "isoframe.engine.interfaces.commands", "app")
    fixed = ("--port", "0", "--device", "cpu", "--threads", "1", "--cache-dir", str(cache))
    process = subprocess.Popen(
        [*program, *fixed, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCES)} | variables,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split(" ")[0]
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
