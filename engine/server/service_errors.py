"""What a service refuses."""

from ..errors import ConfigError, IsoframeError


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
