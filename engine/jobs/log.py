"""What happens in one job: its events, numbered and kept for any number of readers, and its pace."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..events import Event, PhaseEvent, SectionEvent, StepEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The pace so far.

    Attributes:
        seconds_per_step: mean over the steps of this section so far.
        seconds_per_frame: denoising and decoding of a whole section, per frame of video; None until a section was
            decoded. The first section has no neighbour to decode again, so later figures are a little higher.
        seconds_left: expected until the end; without the decoding until a section was decoded.
    """

    seconds_per_step: float
    seconds_per_frame: float | None
    seconds_left: float


class Pace:
    """Measures a job by its events.

    All steps are averaged. Of the decodes the last one counts: all but the first take the same time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._section_start = self._last_step_end = clock()
        self._denoise_seconds = self._decode_seconds = 0.0
        self._num_steps = self._num_sections = 0
        self._last_step: StepEvent | None = None

    def on_event(self, event: Event) -> Reading | None:
        """Take an event in; a step and the end of a section give a reading."""
        now = self._clock()
        if isinstance(event, StepEvent):
            started = self._section_start if event.step == 0 else self._last_step_end
            self._denoise_seconds += now - started
            self._num_steps += 1
            self._last_step, self._last_step_end = event, now
            return self._read(event, is_decoded=False)
        if isinstance(event, PhaseEvent) and event.phase == "denoise":
            self._section_start = now
        if isinstance(event, SectionEvent) and self._last_step is not None:
            self._decode_seconds = now - self._last_step_end
            self._num_sections += 1
            reading = self._read(self._last_step, is_decoded=True)
            self._section_start = now
            return reading
        return None

    def _read(self, event: StepEvent, *, is_decoded: bool) -> Reading:
        step = self._denoise_seconds / self._num_steps
        # A resumed job has sections that were not measured.
        num_sections_left = event.num_sections - event.section
        num_steps_left = num_sections_left * event.num_steps - (event.step + 1)
        num_decodes_left = num_sections_left - int(is_decoded)
        section = event.num_steps * step + self._decode_seconds
        return Reading(
            seconds_per_step=(self._last_step_end - self._section_start) / (event.step + 1),
            seconds_per_frame=section / section_frames(event) if self._num_sections else None,
            seconds_left=num_steps_left * step + num_decodes_left * self._decode_seconds,
        )


def section_frames(event: StepEvent) -> int:
    """Frames of video that one section adds."""
    return 4 * event.x0.shape[2]


def video_span(event: StepEvent, fps: float) -> tuple[float, float]:
    """Start and end, in seconds of video, of the section that ``event`` belongs to."""
    # Latent frame k > 0 decodes to frames 4k - 3 to 4k; frame 0 is the start image.
    first_frame = 4 * event.first_latent_frame - 3
    return first_frame / fps, (first_frame + section_frames(event)) / fps


# Some kilobytes each; the oldest ones go first.
MAX_ENTRIES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One event of a job.

    Attributes:
        index: from 0, without gaps.
        event: what happened; the tensor of a step has its shape alone (it is on the "meta" device).
        seconds: since the job was submitted.
        seconds_left: expected until the end; None until a step is done.
        video_seconds: start and end, in the video, of the section at work; None until a step is done. In the inverted
            order the end of the video comes first.
    """

    index: int
    event: Event
    seconds: float
    seconds_left: float | None
    video_seconds: tuple[float, float] | None


class JobLog:
    """Takes events from one thread and gives them to readers in others; keeps the last :data:`MAX_ENTRIES`."""

    def __init__(self, fps: float, max_entries: int = MAX_ENTRIES) -> None:
        """An empty log of a video with ``fps`` frames per second."""
        self._fps = fps
        self._entries: deque[LogEntry] = deque(maxlen=max_entries)
        self._num_entries = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._pace = Pace()
        self._start = time.perf_counter()
        self._seconds_left: float | None = None
        self._video_seconds: tuple[float, float] | None = None

    def append(self, event: Event, *, is_last: bool = False) -> None:
        """Add an event; the last one closes the log."""
        with self._changed:
            reading = self._pace.on_event(event)
            if reading is not None:
                self._seconds_left = reading.seconds_left
            if isinstance(event, StepEvent):
                self._video_seconds = video_span(event, self._fps)
                # A log must not keep the device's memory, and the tensor changes with the next step.
                event = replace(event, x0=event.x0.to("meta"))
            entry = LogEntry(
                index=self._num_entries,
                event=event,
                seconds=time.perf_counter() - self._start,
                seconds_left=self._seconds_left,
                video_seconds=self._video_seconds,
            )
            self._entries.append(entry)
            self._num_entries += 1
            self._is_closed |= is_last
            self._changed.notify_all()

    def entries(self, after: int = -1) -> Iterator[LogEntry]:
        """The entries that are kept, then those to come, until the log is closed.

        Args:
            after: index of the last entry that the reader has.
        """
        while True:
            batch, is_closed = self.read(after, is_waiting=True)
            yield from batch
            if is_closed:
                return
            after = batch[-1].index

    def read(self, after: int = -1, *, is_waiting: bool = False) -> tuple[list[LogEntry], bool]:
        """Entries after ``after``, and whether no more will come; ``is_waiting`` waits until there is one of both."""
        with self._changed:
            if is_waiting:
                self._changed.wait_for(lambda: self._is_closed or self._num_entries > after + 1)
            num_gone = self._num_entries - len(self._entries)
            entries = itertools.islice(self._entries, max(after + 1 - num_gone, 0), None)
            return list(entries), self._is_closed
