"""When each unit was copied and computed: measured, or predicted from a copy rate."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .device_copies import CopySpan
from .work_streams import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTiming:
    """One use of one unit; seconds from the first event of the log.

    Attributes:
        unit: which.
        slot: where it lay.
        copy_start: begin of the copy; None for a resident that was there already.
        copy_end: its end.
        wanted: when compute had nothing left to do but this unit.
        compute_start: when it had the unit.
        compute_end: when it released the unit.
    """

    unit: int
    slot: int
    copy_start: float | None
    copy_end: float | None
    wanted: float
    compute_start: float
    compute_end: float


@dataclass(frozen=True, slots=True)
class _Use:
    unit: int
    slot: int
    copy: CopySpan | None
    wanted: Event
    start: Event


class EventLog:
    """Events of the units' copies and uses; the same for CUDA, threads and the virtual clock."""

    def __init__(self, max_uses: int | None = None) -> None:
        """Keep the latest ``max_uses`` uses, or all of them."""
        self._copies: dict[int, CopySpan] = {}
        self._open: dict[int, _Use] = {}
        self._done: deque[tuple[_Use, Event]] = deque(maxlen=max_uses)

    def copied(self, unit: int, span: CopySpan) -> None:
        """Note that the copy of ``unit`` is enqueued."""
        self._copies[unit] = span

    def acquired(self, unit: int, slot: int, wanted: Event, start: Event) -> None:
        """Note that compute uses ``unit`` from now on."""
        self._open[unit] = _Use(unit, slot, self._copies.pop(unit, None), wanted, start)

    def released(self, unit: int, end: Event) -> None:
        """Note that compute is done with ``unit``."""
        self._done.append((self._open.pop(unit), end))

    def timings(self) -> list[UnitTiming]:
        """All finished uses in the order of their release; blocks until the device has got there."""
        if not self._done:
            return []
        for _, end in self._done:
            end.synchronize()
        uses = [use for use, _ in self._done]
        starts = [use.wanted for use in uses]
        starts += [use.copy.start for use in uses if use.copy is not None and use.copy.start is not None]
        origin = min(starts, key=lambda event: event.seconds_since(uses[0].wanted))
        return [_timing(use, end, origin) for use, end in self._done]


def _timing(use: _Use, end: Event, origin: Event) -> UnitTiming:
    copy = use.copy or CopySpan()
    return UnitTiming(
        unit=use.unit,
        slot=use.slot,
        copy_start=None if copy.start is None else copy.start.seconds_since(origin),
        copy_end=None if copy.end is None else copy.end.seconds_since(origin),
        wanted=use.wanted.seconds_since(origin),
        compute_start=use.start.seconds_since(origin),
        compute_end=end.seconds_since(origin),
    )


def last_passes(timings: Sequence[UnitTiming], num_passes: int) -> list[UnitTiming]:
    """The uses of the last ``num_passes`` passes through the units, all if there are fewer."""
    starts = [index for index, timing in enumerate(timings) if timing.unit == 0]
    return list(timings[starts[-num_passes] :]) if len(starts) > num_passes else list(timings)


def exposed_wait(timings: Sequence[UnitTiming]) -> float:
    """Seconds in which compute had nothing to do but wait for a unit."""
    return sum(timing.compute_start - timing.wanted for timing in timings)


def chrome_trace(timings: Sequence[UnitTiming]) -> str:
    """The timeline as JSON for chrome://tracing and ui.perfetto.dev: copies, waits and uses of each slot."""
    events: list[dict[str, object]] = []
    for timing in timings:
        name = f"unit {timing.unit}"
        if timing.copy_start is not None and timing.copy_end is not None:
            events.append(_span(name, "copy", timing.copy_start, timing.copy_end))
        if timing.compute_start > timing.wanted:
            events.append(_span(f"wait for {name}", "wait", timing.wanted, timing.compute_start))
        events.append(_span(name, f"compute (slot {timing.slot})", timing.compute_start, timing.compute_end))
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events})


def _span(name: str, track: str, start: float, end: float) -> dict[str, object]:
    return {
        "name": name,
        "ph": "X",
        "pid": "streamer",
        "tid": track,
        "ts": 1e6 * start,
        "dur": 1e6 * (end - start),
    }
