"""A hook for the host: every frame passes through a function of its own before anybody sees it."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ConfigError

# Frames uint8 [T, H, W, 3] in video order and the place of the first of them; frames of the same shape come back. It may
# blur, mark, or raise ContentError, which ends the job. Provisional frames pass through it too, and come again.
FrameFilter = Callable[[Tensor, int], Tensor]


def filter_name(function: FrameFilter | None) -> str | None:
    """What metadata and jobs call it: "module:function"."""
    if function is None:
        return None
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def apply_filter(function: FrameFilter | None, frames: Tensor, first_frame: int) -> Tensor:
    """``frames`` as ``function`` wants them; unchanged where there is none.

    Raises:
        ConfigError: it returned something else than frames.
    """
    if function is None or len(frames) == 0:
        return frames
    filtered = function(frames, first_frame)
    if not isinstance(filtered, Tensor) or filtered.dtype != torch.uint8 or filtered.shape != frames.shape:
        got = (
            f"{filtered.dtype} {tuple(filtered.shape)}"
            if isinstance(filtered, Tensor)
            else type(filtered).__name__
        )
        raise ConfigError(
            f"frame_filter {filter_name(function)} must return uint8 {tuple(frames.shape)}, got {got}"
        )
    return filtered.cpu()


def load_filter(name: str) -> FrameFilter:
    """The function called ``"module:function"``.

    Raises:
        ConfigError: there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"--frame-filter must be MODULE:FUNCTION, {name!r} cannot be imported: {error}; is its folder in PYTHONPATH?"
        ) from error
    if not callable(function):
        raise ConfigError(f"--frame-filter must be MODULE:FUNCTION, {name!r} is no function")
    found: FrameFilter = function
    return found
