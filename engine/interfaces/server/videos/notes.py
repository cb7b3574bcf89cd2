"""What a service adds to the folder of a job: how it was asked for, and how it ended unless it is done."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ....files import write_durably
from ....jobs.state import JobState
from .status import VideoFailure

_logger = logging.getLogger(__name__)
# A job that starts removes temporary files from its own folder, notes that are being written among them.
_NOTES = "service"
_ASKED, _END = "asked.json", "end.json"


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


def write_asked(folder: Path, asked: Asked) -> None:
    """Write how a job was asked for into its folder."""
    _write(folder, _ASKED, asdict(asked))


def read_asked(folder: Path) -> Asked:
    """What :func:`write_asked` kept; if the process was killed before it could, the time of its record."""
    values = _read(folder / _NOTES / _ASKED)
    return Asked(created=(folder / "job.json").stat().st_mtime) if values is None else Asked(**values)


def write_end(folder: Path, end: End) -> None:
    """Write how a job ended into its folder."""
    _write(folder, _END, asdict(end))


def read_end(folder: Path) -> End | None:
    """What :func:`write_end` kept; None if the job did not end, or is done."""
    values = _read(folder / _NOTES / _END)
    if values is None:
        return None
    failure = values.get("failure")
    return End(
        state=JobState(values["state"]),
        ended=values["ended"],
        failure=None if failure is None else VideoFailure(**failure),
    )


def _write(folder: Path, name: str, values: Mapping[str, object]) -> None:
    (folder / _NOTES).mkdir(exist_ok=True)
    write_durably(folder / _NOTES / name, json.dumps(values).encode())


def forget_end(folder: Path) -> None:
    """Remove what :func:`write_end` kept: the job goes on."""
    (folder / _NOTES / _END).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        _logger.warning("%s is damaged (%s) and not used", path, error)
        return None
    return dict(values) if isinstance(values, Mapping) else None
