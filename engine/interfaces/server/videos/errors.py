"""What a service refuses, and what it tells of an error that ended a video."""

import logging
import os
from pathlib import Path

from ....errors import ConfigError, IsoframeError
from .status import VideoFailure

_logger = logging.getLogger(__name__)


class FieldError(ConfigError):
    """A field of a request cannot be used.

    Attributes:
        field: its name.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class UnknownVideoError(IsoframeError):
    """There is no video of this id."""


class NotFinishedError(IsoframeError):
    """The video has not what was asked for, or not yet."""


def failure_of(error: BaseException, jobs: Path) -> VideoFailure:
    """Why a video was not made, without where it lies: whoever asked for it knows its name, and needs no more.

    Args:
        error: that ended it; the text of one that this package did not raise on purpose goes to the log alone.
        jobs: folder of the jobs.
    """
    name = type(error).__name__
    if not isinstance(error, IsoframeError):
        _logger.error("a video failed", exc_info=error)
        return VideoFailure(error=name, message=f"the server failed ({name}); its log says more")
    message = str(error)
    for folder in (jobs, jobs.parent):
        message = message.replace(f"{folder}{os.sep}", "")
    return VideoFailure(error=name, message=message)
