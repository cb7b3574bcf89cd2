"""What a service adds to the folder of a job: how it was asked for, and how it ended unless it is done."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ....files import write_durably
from ....jobs.state import JobState
from .status import VideoFailure

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_logger = logging.getLogger(__name__)
# A job that starts removes temporary files from its own folder, notes that are being written among them.
_NOTES = "service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How a job was asked for.

    Attributes:
        created: seconds since 1970.
        priority: of the queue.
        has_previews: whether pictures are drawn.
    """

    created: float
    priority: int = 0
    has_previews: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a job ended.

    Attributes:
        state: FAILED, PAUSED, CANCELLED or DELETED.
        ended: seconds since 1970.
        failure: why it failed.
    """

    state: JobState
    ended: float
    failure: VideoFailure | None = None


T = TypeVar("T", Asked, End)


def write_note(folder: Path, note: Asked | End) -> None:
    """Keep ``note`` in the ``folder`` of its job; it takes the place of the last one of its kind."""
    path = _path(folder, type(note))
    path.parent.mkdir(exist_ok=True)
    write_durably(path, _adapter(type(note)).dump_json(note))


def read_asked(folder: Path) -> Asked:
    """How the job was asked for; if the process was killed before it could keep that, the time of its record."""
    return _read(folder, Asked) or Asked(created=(folder / "job.json").stat().st_mtime)


def read_end(folder: Path) -> End | None:
    """How the job ended; None if it did not, or is done."""
    return _read(folder, End)


def forget_end(folder: Path) -> None:
    """Remove the note of the end: the job goes on."""
    _path(folder, End).unlink(missing_ok=True)


def _path(folder: Path, kind: type[Asked | End]) -> Path:
    return folder / _NOTES / f"{kind.__name__.lower()}.json"


def _adapter(kind: type[Any]) -> "TypeAdapter[Any]":
    # Every door that keeps videos brings it; a program that only imports the service need not have it.
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _read(folder: Path, kind: type[T]) -> T | None:
    path = _path(folder, kind)
    try:
        note: T = _adapter(kind).validate_json(path.read_bytes())
        return note
    except FileNotFoundError:
        return None
    except ValueError as error:
        _logger.warning("%s is damaged (%s) and not used", path, error)
        return None
