"""What torch's allocator may take of a device: one limit for the whole process, whatever the number of engines."""

import threading
import weakref

import torch

_lock = threading.Lock()


class MemoryShare:
    """One engine's part in the limit of its device; nothing on devices other than CUDA.

    The limit is the sum of the shares and of what the process held before the first of them. It is off where an engine
    has lifted it, and where no engine has a share.

    Attributes:
        num_bytes: of the engine; None where it has lifted the limit.
    """

    def __init__(self, device: torch.device) -> None:
        """A share of nothing, until :meth:`set`."""
        self.num_bytes: int | None = 0
        self._device = device

    def set(self, num_bytes: int) -> None:
        """Have ``num_bytes`` of the device; a limit that was lifted stays so."""
        if self._device.type != "cuda":
            return
        with _lock:
            shares = _shares.setdefault(self._device, weakref.WeakSet())
            if not shares:
                _held_before[self._device] = torch.cuda.memory_allocated(self._device)
            shares.add(self)
            if self.num_bytes is not None:
                self.num_bytes = num_bytes
            _apply(self._device)

    def lift(self) -> None:
        """Let others in the process take the whole device, as long as this engine is open."""
        if self._device.type != "cuda":
            return
        with _lock:
            self.num_bytes = None
            _apply(self._device)

    def withdraw(self) -> None:
        """Have no share any more; doing so twice is allowed."""
        if self._device.type != "cuda":
            return
        with _lock:
            _shares.get(self._device, weakref.WeakSet()).discard(self)
            _apply(self._device)


# Of all open engines: the allocator has one limit a device, and the last engine to set it must not starve the others.
_shares: dict[torch.device, weakref.WeakSet[MemoryShare]] = {}
_held_before: dict[torch.device, int] = {}


def _apply(device: torch.device) -> None:
    """Have the allocator give back what it keeps, then fail, rather than take more than the limit."""
    parts = [share.num_bytes for share in _shares.get(device, ())]
    fraction = 1.0
    if parts and None not in parts:
        _, total = torch.cuda.mem_get_info(device)
        num_bytes = _held_before[device] + sum(part for part in parts if part is not None)
        fraction = min(num_bytes / total, 1.0)
    torch.cuda.set_per_process_memory_fraction(fraction, device)
