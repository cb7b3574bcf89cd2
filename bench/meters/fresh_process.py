"""A measurement in a process of its own: what an earlier one left in memory cannot help or harm it.

Where one fails for lack of memory, that says something about a budget; another failure does not.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from ...engine.device import is_out_of_memory
from ...engine.errors import DeviceError


class ProcessError(RuntimeError):
    """A process failed.

    Attributes:
        signal: that killed it; None where it ended by itself.
    """

    def __init__(self, message: str, signal: int | None) -> None:
        super().__init__(message)
        self.signal = signal


def run_module(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None, timeout: float | None = None
) -> Any:
    """What ``python -P -m isoframe.bench.<module>`` prints in its last line, which is JSON.

    Args:
        module: of this package.
        arguments: of the command line.
        environment: what it has beyond that of this process.
        timeout: seconds after which it is killed; None for no limit.

    Raises:
        ProcessError: it failed; with the end of what it wrote.
    """
    command = [sys.executable, "-P", "-m", f"isoframe.bench.{module}", *arguments]
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | paths | dict(environment or {}),
        timeout=timeout,
    )
    if done.returncode:
        raise ProcessError(
            f"{module} failed with exit code {done.returncode}: {done.stderr.strip()[-2000:]}",
            -done.returncode if done.returncode < 0 else None,
        )
    return json.loads(done.stdout.splitlines()[-1])


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a lack of memory, as torch or a library raises it or as the engine tells it."""
    reason = error.__cause__ if isinstance(error, DeviceError) else error
    return reason is not None and is_out_of_memory(reason)


def first_line(error: Exception) -> str:
    """What ``error`` says, in a line; Triton's say more, an assertion may say nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
