"""Ours beside diffusers': the same result first, then both timed in turn, in one process."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...engine.errors import IsoframeError
from ..meters.accuracy import relative_rms
from ..records.comparison import bootstrap_ratio
from ..records.rows import BenchRow, Gate, make_rows

Clock = Callable[[], float]
Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerResult:
    """Both, timed in turn.

    Attributes:
        error: relative difference of their results.
        diffusers_times: seconds of every run of diffusers.
        isoframe_times: the same of ours.
    """

    error: float
    diffusers_times: tuple[float, ...]
    isoframe_times: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Ratio of the medians, ours over diffusers'."""
        return statistics.median(self.isoframe_times) / statistics.median(self.diffusers_times)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of :attr:`ratio`."""
        return bootstrap_ratio(self.isoframe_times, self.diffusers_times)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest ratio of two that ran one after the other."""
        pairs = zip(self.isoframe_times, self.diffusers_times, strict=True)
        ratios = [ours / theirs for ours, theirs in pairs]
        return min(ratios), max(ratios)

    def rows(self, case: str, unit: str, gate: str, **shared: Any) -> list[BenchRow]:
        """Times of both and their ratio; ``gate`` says what agreed before."""
        return make_rows(
            (
                (case, "diffusers", unit, self.diffusers_times),
                (case, "isoframe", unit, self.isoframe_times),
                (case, "isoframe/diffusers", "ratio", [self.ratio]),
            ),
            gate=Gate(is_green=True, text=gate),
            **shared,
        )


def compare_in_turn(
    theirs: Run,
    ours: Run,
    *,
    what: str,
    limit: float,
    repeats: int,
    find_error: Callable[[Tensor, Tensor], float] = relative_rms,
    clock: Clock = time.perf_counter,
) -> PeerResult:
    """Check that both give the same, then time ``repeats`` of each, one of each in turn.

    Args:
        theirs: a run of diffusers; the result is on the host, so that the device has finished.
        ours: the same of ours.
        what: is compared, for the error.
        limit: largest accepted difference.
        repeats: runs of each that are timed.
        find_error: relative difference of a result from the expected one.
        clock: seconds.

    Raises:
        IsoframeError: the results differ by more than ``limit``; nothing is timed then.
    """
    expected, actual = theirs(), ours()
    error = find_error(actual, expected) if actual.shape == expected.shape else float("inf")
    if not error <= limit:
        raise IsoframeError(
            f"{what} {tuple(actual.shape)} and {tuple(expected.shape)} differ by {error:.2e}, more than {limit:.0e}; "
            "nothing was timed"
        )
    times = [(_seconds(theirs, clock), _seconds(ours, clock)) for _ in range(repeats)]
    diffusers_times, isoframe_times = zip(*times, strict=True)
    return PeerResult(error=error, diffusers_times=diffusers_times, isoframe_times=isoframe_times)


def _seconds(function: Run, clock: Clock) -> float:
    start = clock()
    function()
    return clock() - start
