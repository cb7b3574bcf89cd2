"""A lock between processes that ends with its holder."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError


@contextlib.contextmanager
def exclusive_lock(path: Path, message: str) -> Iterator[None]:
    """Hold ``path`` (created) for this process alone.

    Raises:
        InputError: another process holds it; with ``message``.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            _lock(fd)
        except OSError as error:
            raise InputError(message) from error
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
