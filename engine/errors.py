"""Exceptions raised by the engine.

* IsoframeError
  * ConfigError (also a ValueError)
  * InputError
  * CheckpointError
    * UnknownModelError (also a ConfigError)
  * DeviceError
  * BudgetError
  * NumericalError
  * QueueFullError
  * JobCancelledError
  * ContentError
"""

from collections.abc import Iterable, Mapping, Sequence

EXIT_FAILED = 1
EXIT_USAGE = 2


class IsoframeError(Exception):
    """Base class of every error this package raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions pickle their positional arguments alone: other processes could not make one that needs more.
        return _remake, (type(self), self.args), self.__dict__


class ConfigError(IsoframeError, ValueError):
    """A configuration value is out of range or contradicts another one."""


class InputError(IsoframeError):
    """An input file or an output path cannot be used."""


class CheckpointError(IsoframeError):
    """A checkpoint is missing or damaged, or a tensor is absent or has another shape than the model."""


class UnknownModelError(CheckpointError, ConfigError):
    """A name is neither a path that exists nor of the form of a Hub id."""


class DeviceError(IsoframeError):
    """The device cannot run the requested kernel or dtype."""


class BudgetError(IsoframeError):
    """A plan needs more memory than there is.

    Attributes:
        needed: bytes.
        available: bytes.
        option: the configuration that decides, as in :class:`~isoframe.engine.EngineConfig`.
    """

    def __init__(self, message: str, *, needed: int, available: int, option: str) -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available
        self.option = option


class NumericalError(IsoframeError):
    """Latents became NaN or infinite.

    Attributes:
        section: section in generation order, from 0.
        step: denoising step, from 0.
        backend: attention backend in use.
    """

    def __init__(self, message: str, *, section: int, step: int, backend: str) -> None:
        super().__init__(message)
        self.section = section
        self.step = step
        self.backend = backend


class QueueFullError(IsoframeError):
    """An engine has as many jobs waiting as it may."""


class JobCancelledError(IsoframeError):
    """A job ended because it was told to."""


class ContentError(IsoframeError):
    """A frame filter refused what it saw."""


def exit_code(error: BaseException) -> int:
    """What a command that fails with ``error`` returns to the shell."""
    return EXIT_USAGE if isinstance(error, ConfigError | BudgetError) else EXIT_FAILED


def _remake(kind: type[IsoframeError], args: tuple[object, ...]) -> IsoframeError:
    """An error from its pickle, without its attributes."""
    return kind.__new__(kind, *args)


def first_names(names: Iterable[str]) -> str:
    """The first ten names, for a message."""
    names = list(names)
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def count_problems(problems: Mapping[str, Sequence[str]]) -> str:
    """Every kind of problem with its number and first names, for a message; empty where there is none."""
    return "; ".join(
        f"{len(names)} {kind}: {first_names(names)}" for kind, names in problems.items() if names
    )
