"""What a process holds right now, and the most it held since the last look: device and host."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
# "5" sets the peak of the resident set back to its present size (proc(5)).
_RESET_PEAK = "5"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """Bytes at one moment.

    Attributes:
        rss: resident set of the process.
        peak_rss: its largest size since the reading before; where the system cannot tell, since the start.
        allocated: device memory of tensors; None on the CPU, as are the next three.
        peak_allocated: its largest value since the reading before.
        reserved: what torch's allocator holds.
        device_used: what the device has lent out, to all programs and the CUDA context.
        written: what the process wrote since its start, to every file and stream; None where the system cannot tell.
    """

    rss: int
    peak_rss: int
    allocated: int | None = None
    peak_allocated: int | None = None
    reserved: int | None = None
    device_used: int | None = None
    written: int | None = None


class MemoryMeter:
    """Reads the memory of this process and of one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._num_written = _written_counter(self._process)

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked for."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def read(self) -> MemoryReading:
        """Memory now; peaks begin anew."""
        rss = self._process.memory_info().rss
        peak = max(take_peak_rss(), rss)
        if self._device.type != "cuda":
            return MemoryReading(rss=rss, peak_rss=peak, written=self._num_written())
        free, total = torch.cuda.mem_get_info(self._device)
        reading = MemoryReading(
            rss=rss,
            peak_rss=peak,
            allocated=torch.cuda.memory_allocated(self._device),
            peak_allocated=torch.cuda.max_memory_allocated(self._device),
            reserved=torch.cuda.memory_reserved(self._device),
            device_used=total - free,
            written=self._num_written(),
        )
        torch.cuda.reset_peak_memory_stats(self._device)
        return reading


def _written_counter(process: psutil.Process) -> Callable[[], int | None]:
    if not hasattr(process, "io_counters"):
        return lambda: None
    # Linux counts what was handed to write(), other systems what reached the disk.
    name = "write_chars" if hasattr(process.io_counters(), "write_chars") else "write_bytes"
    return lambda: int(getattr(process.io_counters(), name))


def take_peak_rss() -> int:
    """Largest resident set since the last call; since the start of the process where it cannot be set back."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    if not _CLEAR_REFS.exists():
        # macOS counts bytes, and has no way to begin anew.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    # Some containers forbid it; the peak then holds since the start.
    with contextlib.suppress(PermissionError):
        _CLEAR_REFS.write_text(_RESET_PEAK)
    return int(line.split()[1]) * 1024
