"""What a job cost, phase by phase, taken from the events that every job reports."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ...engine.events import Event, FileEvent, PhaseEvent, SectionEvent, StepEvent
from .memory_meter import MemoryReading

# Phases of a section, in their order; "rest" is what lies between the end of one and the beginning of the next.
SECTION_PHASES = ("pack", "denoise", "decode", "encode", "checkpoint", "rest")


class Meter(Protocol):
    """Reads memory; a test brings its own."""

    def synchronize(self) -> None: ...

    def read(self) -> MemoryReading: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCost:
    """One phase, done.

    Attributes:
        phase: its name, as in :class:`PhaseEvent`.
        section: section in generation order, from 0; None outside of sections.
        start: seconds since the job began.
        seconds: wall time.
        memory: at its end, peaks since its start.
        written: bytes that the process wrote meanwhile; None where the system cannot tell.
        references: seconds of each run of the reference work, which are not among ``seconds``.
    """

    phase: str
    section: int | None
    start: float
    seconds: float
    memory: MemoryReading
    written: int | None
    references: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionCost:
    """One section, summed up.

    Attributes:
        seconds: wall time by phase.
        peak_rss: largest resident set.
        peak_allocated: largest memory of tensors on the device; None on the CPU.
        written: bytes; None where the system cannot tell.
        reference: mean seconds of the reference work beside its steps; None where there was none.
    """

    seconds: Mapping[str, float]
    peak_rss: int
    peak_allocated: int | None
    written: int | None
    reference: float | None = None

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCost:
    """One job.

    Attributes:
        length: seconds of video asked for.
        phases: in their order.
        file_bytes: size of the video file.
        kept_bytes: size of the job folder; 0 without one.
        measuring: seconds that taking these figures cost.
    """

    length: float
    phases: tuple[PhaseCost, ...]
    file_bytes: int
    kept_bytes: int = 0
    measuring: float

    @property
    def sections(self) -> list[SectionCost]:
        """What each section cost, in generation order."""
        groups: defaultdict[int, list[PhaseCost]] = defaultdict(list)
        for phase in self.phases:
            if phase.section is not None:
                groups[phase.section].append(phase)
        return [_sum_up(groups[index]) for index in sorted(groups)]

    @property
    def references(self) -> list[float] | None:
        """Mean seconds of the reference work beside every section; None where there was none."""
        found = [section.reference for section in self.sections]
        known = [seconds for seconds in found if seconds is not None]
        return known if len(known) == len(found) else None

    @property
    def peak_rss(self) -> int:
        """Largest resident set during the sections."""
        return max(section.peak_rss for section in self.sections)

    @property
    def peak_allocated(self) -> int | None:
        """Largest memory of tensors on the device during the sections; None on the CPU."""
        peaks = [section.peak_allocated for section in self.sections]
        return max((peak for peak in peaks if peak is not None), default=None)

    @property
    def written(self) -> int | None:
        """Bytes that the process wrote during the whole job."""
        return _sum([phase.written for phase in self.phases])

    @property
    def measuring_share(self) -> float:
        """Part of the sections' time that measuring cost."""
        return self.measuring / sum(section.total for section in self.sections)


class CostRecorder:
    """Turns events into phase records; give :meth:`on_event` to the job."""

    def __init__(
        self,
        meter: Meter,
        clock: Callable[[], float] = time.perf_counter,
        reference_work: Callable[[], None] | None = None,
    ) -> None:
        """Record with ``clock``; ``reference_work`` is done and timed after every step."""
        self._meter = meter
        self._clock = clock
        self._reference_work = reference_work
        self._references: list[float] = []
        self._phases: list[PhaseCost] = []
        self._section = -1
        self._measuring = 0.0
        self._memory = meter.read()
        self._job_start = self._start = clock()
        self._phase = "start"

    def on_event(self, event: Event) -> None:
        """Take an event; only those that end a phase, or bring the reference work, cost anything."""
        if isinstance(event, PhaseEvent):
            self._end_phase(event.phase)
        elif isinstance(event, StepEvent):
            self._time_reference()
        elif isinstance(event, SectionEvent):
            self._end_phase("rest")
        elif isinstance(event, FileEvent):
            self._end_phase("end")

    def finish(self, *, length: float, file_bytes: int, kept_bytes: int = 0) -> JobCost:
        """The record of the job that has ended, and with it its last phase."""
        if self._phase not in ("start", "end"):
            self._end_phase("end")
        return JobCost(
            length=length,
            phases=tuple(self._phases),
            file_bytes=file_bytes,
            kept_bytes=kept_bytes,
            measuring=self._measuring,
        )

    def _time_reference(self) -> None:
        if self._reference_work is not None:
            start = self._clock()
            self._reference_work()
            self._references.append(self._clock() - start)

    def _end_phase(self, next_phase: str) -> None:
        self._meter.synchronize()
        end = self._clock()
        if self._phase != "start":
            before, self._memory = self._memory, self._meter.read()
            self._phases.append(
                PhaseCost(
                    phase=self._phase,
                    section=self._section if self._phase in SECTION_PHASES else None,
                    start=self._start - self._job_start,
                    seconds=end - self._start - sum(self._references),
                    memory=self._memory,
                    written=_difference(self._memory.written, before.written),
                    references=tuple(self._references),
                )
            )
        self._references.clear()
        self._phase = next_phase
        self._section += next_phase == "pack"
        # What measuring took belongs to no phase.
        self._start = self._clock()
        self._measuring += self._start - end


def _sum_up(phases: list[PhaseCost]) -> SectionCost:
    seconds: defaultdict[str, float] = defaultdict(float)
    for phase in phases:
        seconds[phase.phase] += phase.seconds
    peaks = [phase.memory.peak_allocated for phase in phases]
    references = [seconds for phase in phases for seconds in phase.references]
    return SectionCost(
        seconds=dict(seconds),
        peak_rss=max(phase.memory.peak_rss for phase in phases),
        peak_allocated=max((peak for peak in peaks if peak is not None), default=None),
        written=_sum([phase.written for phase in phases]),
        reference=statistics.fmean(references) if references else None,
    )


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _difference(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before
