"""Whether a measurement failed for lack of memory, which says something about a budget, or for another reason."""

from ..engine.device import is_out_of_memory
from ..engine.errors import DeviceError


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a lack of memory, as torch or a library raises it or as the engine tells it."""
    reason = error.__cause__ if isinstance(error, DeviceError) else error
    return reason is not None and is_out_of_memory(reason)
