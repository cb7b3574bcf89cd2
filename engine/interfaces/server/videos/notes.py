"""What a service adds to the folder of a job: how it was asked for, and how it ended unless it is done."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ....errors import InputError
from ....files import parse_json, write_durably, writing
from ....jobs.state import JobState
from .status import VideoFailure

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_logger = logging.getLogger(__name__)
# A job that starts removes temporary files from its own folder, notes that are being written among them.
_NOTES = "service"
_ENDS = (JobState.DONE, JobState.FAILED, JobState.PAUSED, JobState.CANCELLED, JobState.DELETED)
# Beyond it clocks and calendars fail.
_LATEST = 10**11


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How a job was asked for.

    Attributes:
        created: seconds since 1970.
        priority: of the queue.
        has_previews: whether pictures are drawn.
        key: that the client gave it, so that asking once more does not make it twice; None if it gave none.
        digest: of what was asked for under ``key``.
    """

    created: float
    priority: int = 0
    has_previews: bool = False
    key: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        _check_time("created", self.created)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a job ended.

    Attributes:
        state: DONE, FAILED, PAUSED, CANCELLED or DELETED.
        ended: seconds since 1970.
        failure: why it failed.
    """

    state: JobState
    ended: float
    failure: VideoFailure | None = None

    def __post_init__(self) -> None:
        _check_time("ended", self.ended)
        if self.state not in _ENDS:
            raise ValueError(f"state {self.state} is no end")


T = TypeVar("T", Asked, End)


def write_note(folder: Path, note: Asked | End) -> None:
    """Keep ``note`` in the ``folder`` of its job; it takes the place of the last one of its kind.

    Raises:
        InputError: it cannot be written.
    """
    path = _path(folder, type(note))
    with writing(path):
        path.parent.mkdir(0o700, exist_ok=True)
        write_durably(path, _adapter(type(note)).dump_json(note))


def read_asked(folder: Path) -> Asked:
    """How the job was asked for; if nothing says it (any more), the time of its folder is all that is known."""
    try:
        asked = _read(folder, Asked)
    except InputError as error:
        _logger.warning("not used: %s", error)
        asked = None
    return asked or Asked(created=min(max(folder.lstat().st_mtime, 0.0), _LATEST))


def read_end(folder: Path) -> End | None:
    """How the job ended; None if it did not, or is done.

    Raises:
        InputError: it ended, but what is kept of that is damaged.
    """
    return _read(folder, End)


def forget_end(folder: Path) -> None:
    """Remove the note of the end: the job goes on."""
    with writing(path := _path(folder, End)):
        path.unlink(missing_ok=True)


def _path(folder: Path, kind: type[Asked | End]) -> Path:
    return folder / _NOTES / f"{kind.__name__.lower()}.json"


def _adapter(kind: type[Any]) -> "TypeAdapter[Any]":
    # Every door that keeps videos brings it; a program that only imports the service need not have it.
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _read(folder: Path, kind: type[T]) -> T | None:
    path = _path(folder, kind)
    try:
        note: T = _adapter(kind).validate_python(parse_json(path.read_bytes()))
        return note
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}; delete it or the video") from error


def _check_time(name: str, seconds: float) -> None:
    if not 0 <= seconds <= _LATEST:
        raise ValueError(f"{name} must be from 0 to {_LATEST}, got {seconds}")
