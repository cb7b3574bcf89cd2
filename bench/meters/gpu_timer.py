"""Times of GPU work, from events, so that the host's time is not in them."""

import statistics
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Call = Callable[[], object]

_TARGET_SECONDS = 0.2
_MIN_REPEATS, _MAX_REPEATS = 5, 100
# Long enough for the host to queue all repeats of a short kernel, about 100 us each.
_SLEEP_CYCLES = 30_000_000


class Timer(Protocol):
    """What measures calls on a device, and the memory that they take."""

    def seconds(self, calls: Sequence[Call], repeats: int, *, is_cold: bool) -> list[float]:
        """Seconds of each of ``repeats`` calls, which take turns; ``is_cold`` empties the L2 cache before each."""
        ...

    def reset_peak(self) -> None:
        """Forget the largest memory so far."""
        ...

    def peak_bytes(self) -> int:
        """Largest memory of tensors since the last reset."""
        ...


class CudaTimer:
    """Times calls on the current CUDA device."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self._flushed: Tensor = torch.empty(4 * properties.L2_cache_size, dtype=torch.int8, device="cuda")

    def seconds(self, calls: Sequence[Call], repeats: int, *, is_cold: bool) -> list[float]:
        """Seconds of each call."""
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        torch.cuda.synchronize()
        # The device waits while the host queues the calls; else short kernels would wait for the host.
        torch.cuda._sleep(_SLEEP_CYCLES)
        for i, (start, end) in enumerate(events):
            if is_cold:
                self._flushed.zero_()
            start.record()
            calls[i % len(calls)]()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in events]

    def reset_peak(self) -> None:
        """Forget the largest memory so far."""
        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """Largest memory of tensors since the last reset."""
        return torch.cuda.max_memory_allocated()


def measure(timer: Timer, calls: Sequence[Call], *, is_cold: bool) -> tuple[float, ...]:
    """Seconds of enough calls for a median: after a warm-up, about 0.2 s of them, 5 to 100.

    Args:
        timer: what measures.
        calls: the same work on different memory, taken in turn; one call finds what it left in the cache.
        is_cold: empty the L2 cache before each.
    """
    timer.seconds(calls, len(calls), is_cold=is_cold)
    estimate = statistics.median(timer.seconds(calls, 3, is_cold=is_cold))
    repeats = min(max(round(_TARGET_SECONDS / max(estimate, 1e-6)), _MIN_REPEATS), _MAX_REPEATS)
    return tuple(timer.seconds(calls, repeats, is_cold=is_cold))


class Budget:
    """Time that a measurement may take."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        """Start now; ``clock`` counts seconds."""
        self._clock = clock
        self._end = clock() + seconds

    @property
    def seconds_left(self) -> float:
        return self._end - self._clock()
