"""A job that is queued, runs, or ended lately: its progress, and its events with keys that a restart does not confuse.

What a service tells of a video.
"""

import secrets
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ....events import JobEvent, StepEvent
from ....jobs.job import Job
from ....jobs.log import LogEntry

if TYPE_CHECKING:
    from ....jobs.folder import JobFolder


# A video is in one of these; the last three are for ever, unless somebody takes it up again.
STATES = ("queued", "running", "paused", "done", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFailure:
    """Why a video was not made.

    Attributes:
        error: name of the exception's class.
        message: what went wrong, and the remedy.
    """

    error: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoStatus:
    """One video of a service.

    Attributes:
        id: its name.
        state: one of :data:`STATES`.
        created: seconds since 1970.
        ended: the same; None while it is queued or runs.
        model: that makes it.
        prompt: as asked for.
        order: "inverted" (the end of the video is made first) or "forward".
        seed: of the noise.
        seconds: length of the video.
        fps: frames per second.
        height: pixels.
        width: pixels.
        num_frames: of the whole video.
        num_sections: of the whole video.
        num_finished_sections: sampled so far.
        progress: from 0 to 1.
        seconds_left: expected; None while nothing is known.
        failure: set if and only if it failed.
    """

    id: str
    state: str
    created: float
    ended: float | None = None
    model: str
    prompt: str
    order: str
    seed: int
    seconds: float
    fps: int
    height: int
    width: int
    num_frames: int
    num_sections: int
    num_finished_sections: int = 0
    progress: float = 0.0
    seconds_left: float | None = None
    failure: VideoFailure | None = None

    @property
    def is_over(self) -> bool:
        return self.state in STATES[3:]


def describe(name: str, folder: "JobFolder", *, created: float) -> VideoStatus:
    """The video of a job as it waits."""
    record = folder.record
    sampling, request = record.sampling, record.request
    assert request.size is not None, "the record holds the size of the video"
    return VideoStatus(
        id=name,
        state="queued",
        created=created,
        model=str(record.metadata["model"]),
        prompt=request.prompt,
        order=sampling.order,
        seed=sampling.seed,
        seconds=record.num_frames / request.fps,
        fps=request.fps,
        height=request.size[0],
        width=request.size[1],
        num_frames=record.num_frames,
        num_sections=sampling.num_sections,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EventKey:
    """Which event a reader has.

    Attributes:
        run: of the job; another one begins with every start of the service.
        index: of the event in the run.
    """

    run: str
    index: int

    def __str__(self) -> str:
        return f"{self.run}-{self.index}"

    @classmethod
    def parse(cls, text: str) -> "EventKey | None":
        """The key in ``text``; None if it is none."""
        run, _, index = text.rpartition("-")
        is_key = text.isascii() and run.isalnum() and index.isdigit() and len(text) < 40
        return cls(run=run, index=int(index)) if is_key else None


class LiveJob:
    """Every method may be called from any thread.

    Attributes:
        job: at work.
    """

    def __init__(self, job: Job, status: VideoStatus) -> None:
        """``job`` makes the video of ``status``."""
        self.job = job
        self._run = secrets.token_hex(4)
        self._status = status
        self._last_index = -1
        self._lock = threading.Lock()

    def status(self) -> VideoStatus:
        """How far the video is."""
        with self._lock:
            entries, _ = self.job.read_events(self._last_index)
            for entry in entries:
                self._status = _advance(self._status, entry)
            if entries:
                self._last_index = entries[-1].index
            state = self.job.state
            if state == "done":
                sections = self._status.num_sections
                self._status = replace(self._status, progress=1.0, num_finished_sections=sections)
            return replace(self._status, state=state)

    def events(self, after: EventKey | None) -> tuple[list[tuple[EventKey, LogEntry]], bool]:
        """What has happened after a key, and whether no more will; a key of another run has all come again."""
        index = after.index if after is not None and after.run == self._run else -1
        entries, is_over = self.job.read_events(index)
        return [(EventKey(run=self._run, index=entry.index), entry) for entry in entries], is_over


def _advance(status: VideoStatus, entry: LogEntry) -> VideoStatus:
    status = replace(status, seconds_left=entry.seconds_left)
    event = entry.event
    if isinstance(event, JobEvent):
        share = event.num_finished_sections / event.num_sections
        return replace(status, num_finished_sections=event.num_finished_sections, progress=share)
    if isinstance(event, StepEvent):
        done = event.section + (event.step + 1) / event.num_steps
        sections = event.section + (event.step + 1 == event.num_steps)
        return replace(status, num_finished_sections=sections, progress=done / event.num_sections)
    return status
