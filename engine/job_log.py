"""The events of one job, numbered and kept, for any number of readers."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .events import Event, StepEvent
from .pace import Pace, video_span

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

    def append(self, event: Event) -> None:
        """Add an event."""
        with self._changed:
            self._append(event)

    def close(self, event: Event) -> None:
        """Add the last event."""
        with self._changed:
            self._append(event)
            self._is_closed = True

    def entries(self, after: int = -1) -> Iterator[LogEntry]:
        """The entries that are kept, then those to come, until the log is closed.

        Args:
            after: index of the last entry that the reader has.
        """
        while True:
            batch, is_closed = self._wait(after)
            yield from batch
            if is_closed:
                return
            after = batch[-1].index

    def read(self, after: int = -1) -> tuple[list[LogEntry], bool]:
        """Entries after ``after`` that are there, and whether no more will come; does not wait."""
        with self._changed:
            return self._after(after), self._is_closed

    def _wait(self, after: int) -> tuple[list[LogEntry], bool]:
        """Entries after ``after``, and whether no more will come; at least one of both."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._num_entries > after + 1)
            return self._after(after), self._is_closed

    def _after(self, after: int) -> list[LogEntry]:
        num_gone = self._num_entries - len(self._entries)
        return list(itertools.islice(self._entries, max(after + 1 - num_gone, 0), None))

    def _append(self, event: Event) -> None:
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
        self._changed.notify_all()
