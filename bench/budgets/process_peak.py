"""What a process takes on its device at most: context and libraries included, as NVML or the system counts it."""

from typing import Protocol

import torch

from ...engine.planning.machine import CONTEXT_BYTES
from ...engine.planning.nvml import process_bytes, read_card


class ProcessPeak(Protocol):
    """Reads the peak; a test brings its own.

    Attributes:
        source: where the figure comes from.
    """

    source: str

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked for."""
        ...

    def peak(self) -> int:
        """Bytes at most so far."""
        ...


class CudaPeak:
    """NVML's figure for this process; in a container, which process is whose is not told, how much more the card has lent
    out than before this one; without NVML what the allocator held and what a plan takes for the context."""

    def __init__(self, device: torch.device) -> None:
        """Begin, before there is a context."""
        self._device = device
        card = read_card(device)
        self._before = None if card is None else card.used_bytes
        torch.cuda.synchronize(device)
        if process_bytes(device):
            self.source = "NVML, this process"
        elif self._before is not None:
            self.source = "NVML, more than before this process"
        else:
            self.source = f"allocator and {CONTEXT_BYTES / 2**20:.0f} MiB of context"

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def peak(self) -> int:
        """The allocator's peak, and what the process takes beside it now."""
        self.synchronize()
        beside = CONTEXT_BYTES
        used = process_bytes(self._device) or self._lent_since()
        if used is not None:
            beside = used - torch.cuda.memory_reserved(self._device)
        return torch.cuda.max_memory_reserved(self._device) + beside

    def _lent_since(self) -> int | None:
        card = read_card(self._device)
        if card is None or card.used_bytes is None or self._before is None:
            return None
        return card.used_bytes - self._before


class NoPeak:
    """Random weights on the CPU: two units stand for all, so that the resident set says nothing."""

    source = "not measured on the CPU"

    def synchronize(self) -> None:
        """Return at once: the CPU has done all that was asked for."""

    def peak(self) -> int:
        return 0
