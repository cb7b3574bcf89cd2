"""What a service holds of one video: how it stands, its job, and the job's events."""

import os
import secrets
from dataclasses import replace
from pathlib import Path

from ....errors import IsoframeError
from ....events import JobEvent, NoteEvent, StepEvent
from ....jobs.folder import JobFolder
from ....jobs.job import Job
from ....jobs.log import LogEntry
from ....jobs.state import JobState
from .status import VideoStatus


class VideoEntry:
    """One video; whoever calls a method holds the service's lock.

    Attributes:
        path: folder of the job.
        job: that makes the video, or made it lately; None if that is long ago or was before a restart.
        is_live: whether the end of the job is still to be kept.
        stopped_as: what a job is that somebody stops: CANCELLED, or PAUSED.
    """

    def __init__(
        self, path: Path, found: JobFolder | IsoframeError, status: VideoStatus, job: Job | None = None
    ) -> None:
        """``job`` makes the video of ``status``; None for a video that is over or paused.

        Args:
            path: folder of the job.
            found: the job there, whose record is read once, or why it cannot be read.
            status: of the video.
            job: its maker.
        """
        self.path = path
        self._found = found
        self.job = job
        self.is_live = job is not None
        self.stopped_as = JobState.CANCELLED
        self._run = secrets.token_hex(4)
        self._status = status
        self._last_index = -1

    @property
    def folder(self) -> JobFolder:
        """The job; raises :class:`IsoframeError` where it is damaged."""
        if isinstance(self._found, IsoframeError):
            raise type(self._found)(*self._found.args)
        return self._found

    @property
    def is_there(self) -> bool:
        """Whether nobody else removed the job."""
        if isinstance(self._found, IsoframeError):
            return os.path.lexists(self.path)
        return self.is_live or JobFolder.is_job(self.path)

    def status(self) -> VideoStatus:
        """How far the video is."""
        if self.job is None or not self.is_live:
            return self._status
        entries, _ = self.job.read_events(self._last_index)
        for entry in entries:
            self._status = _advance(self._status, entry)
            self._last_index = entry.index
        state = self.job.state
        if state is JobState.DONE:
            sections = self._status.num_sections
            self._status = replace(self._status, progress=1.0, num_finished_sections=sections)
        return replace(self._status, state=self.stopped_as if state is JobState.CANCELLED else state)

    def end(self, status: VideoStatus) -> None:
        """Keep how the video stands from now on."""
        self.is_live, self._status = False, status

    def events(self, after: str | None) -> tuple[list[tuple[str, LogEntry]], bool]:
        """What has happened after a key, each with its key, and whether no more will.

        A key names the run of the job, another one of which begins with every start of the service: to a reader with a key
        of another run, or with none, all comes again.
        """
        if self.job is None:
            return [], True
        run, _, index = (after or "").rpartition("-")
        is_known = run == self._run and index.isascii() and index.isdecimal()
        entries, is_over = self.job.read_events(int(index) if is_known else -1)
        return [(f"{self._run}-{entry.index}", entry) for entry in entries], is_over


def _advance(status: VideoStatus, entry: LogEntry) -> VideoStatus:
    status = replace(status, seconds_left=entry.seconds_left)
    event = entry.event
    if isinstance(event, JobEvent):
        share = event.num_finished_sections / event.num_sections
        return replace(
            status, num_finished_sections=event.num_finished_sections, progress=share, notes=event.notes
        )
    if isinstance(event, NoteEvent):
        return replace(status, notes=(*status.notes, event.text))
    if isinstance(event, StepEvent):
        done = event.section + (event.step + 1) / event.num_steps
        sections = event.section + (event.step + 1 == event.num_steps)
        return replace(status, num_finished_sections=sections, progress=done / event.num_sections)
    return status
