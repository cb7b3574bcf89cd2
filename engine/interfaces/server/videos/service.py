"""The videos of one model: create, look up, cancel, delete; all of them survive a restart."""

import contextlib
import logging
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from ....errors import InputError, QueueFullError
from ....files import exclusive_lock, link_or_copy, make_folder
from ....jobs.folder import JobFolder
from ....jobs.job import Job
from ....jobs.log import LogEntry
from ....jobs.state import JobState
from ....request.config import Request
from .entry import VideoEntry
from .errors import FieldError, NotFinishedError, UnknownVideoError, failure_of
from .found_videos import FoundVideo, find_videos, new_name, remove_job
from .limits import Limits
from .notes import Asked, End, forget_end, read_asked, write_note
from .status import VideoStatus, describe
from .workers import ModelCard, Workers

_logger = logging.getLogger(__name__)
# Jobs whose events are still kept after they ended; up to some megabytes each.
_NUM_RECENT = 8
_LONGEST_WAIT_SECONDS = 3600
# A video whose files are still to be removed is none that anybody is told of.
_TOLD_STATES = tuple(state for state in JobState if state not in (JobState.STOPPED, JobState.DELETED))


class VideoService:
    """Knows no protocol; every method may be called from any thread.

    Methods that take the id of a video raise :class:`UnknownVideoError` where there is none.

    Videos lie in ``folder/jobs``, one job folder each. They are found there at every start, and what a crash or
    :meth:`close` interrupted goes on.
    """

    def __init__(
        self, workers: Workers, folder: Path, *, max_queued: int = 16, limits: Limits | None = None
    ) -> None:
        """Open the service.

        Args:
            workers: make the videos; closed with the service.
            folder: of this service alone; created.
            max_queued: videos that may wait.
            limits: of one request.

        Raises:
            InputError: the folder cannot be used, or another service has it.
        """
        self.limits = limits or Limits()
        self._workers = workers
        self._max_queued = max_queued
        self._jobs, self._kept = folder.absolute() / "jobs", folder.absolute() / "kept"
        self._lock = threading.RLock()
        # Told when the end of a job is kept, and when the service closes.
        self._left = threading.Condition(self._lock)
        self._creating = threading.Lock()
        # In the order in which they came. A deleted one is not here any more, though its job may still be at work.
        self._videos: dict[str, VideoEntry] = {}
        self._is_closing = False
        # The video that was asked for under a client's key, and a digest of what was asked.
        self._keys: dict[str, tuple[str, str | None]] = {}
        for own in (folder, self._jobs):
            make_folder("service", own, is_private=True)
            with contextlib.suppress(OSError):
                own.chmod(0o700)
        told = f"folder {folder} is in use by another service; choose another one"
        with contextlib.ExitStack() as on_failure:
            on_failure.enter_context(exclusive_lock(folder / "lock", told))
            for found in find_videos(self._jobs, self._kept):
                self._take_up(found)
            self._exit = on_failure.pop_all()

    @property
    def card(self) -> ModelCard:
        """Name, device and sizes of the model that makes the videos."""
        return self._workers.card

    @property
    def is_closing(self) -> bool:
        """Whether the service is stopping."""
        return self._is_closing

    def create(
        self,
        request: Request,
        *,
        priority: int = 0,
        has_previews: bool = False,
        key: str | None = None,
        digest: str | None = None,
    ) -> VideoStatus:
        """Have a video made.

        Args:
            request: what is to be seen.
            priority: of the queue.
            has_previews: whether pictures are drawn.
            key: with one that was given before, also before a restart, the video of then is the answer.
            digest: of everything that was asked for under ``key``.

        Raises:
            QueueFullError: as many wait as may.
            FieldError: the request is beyond the limits, or another one had this ``key``.
            IsoframeError: the engine refuses it.
        """
        self.limits.check(request)
        asked = Asked(
            created=time.time(), priority=priority, has_previews=has_previews, key=key, digest=digest
        )
        return self._make(lambda path: self._workers.submit(path, request, asked), asked)

    def get(self, name: str) -> VideoStatus:
        """How a video stands."""
        with self._lock:
            return self._find(name).status()

    def page(
        self, after: str | None = None, limit: int = 20, *, is_oldest_first: bool = False
    ) -> list[VideoStatus]:
        """At most ``limit`` videos, those that follow ``after``."""
        with self._lock:
            names = list(self._videos) if is_oldest_first else list(reversed(self._videos))
            if after is not None:
                self._find(after)
                del names[: names.index(after) + 1]
            return [self._videos[name].status() for name in names[:limit]]

    def cancel(self, name: str) -> VideoStatus:
        """Stop making a video: at once if it waits, else after the step at hand. One that is over stays as it is."""
        return self._stop(name, JobState.CANCELLED)

    def pause(self, name: str) -> VideoStatus:
        """Stop making a video as :meth:`cancel` does, but only until :meth:`resume`; a restart leaves it paused."""
        return self._stop(name, JobState.PAUSED)

    def resume(self, name: str) -> VideoStatus:
        """Take up a video that was paused or cancelled, or failed, where it was. Others stay as they are.

        Raises:
            QueueFullError: as many wait as may.
            IsoframeError: the engine refuses it.
        """
        # The job that was stopped has to be over.
        if self.get(name).state.can_resume:
            self.wait(name)
        with self._creating:
            with self._lock:
                entry = self._find(name)
                status = entry.status()
            if not status.state.can_resume:
                return status
            self._check_room()
            asked = read_asked(entry.path)
            return self._watch(self._workers.resume(entry.folder, asked), asked)

    def redo(
        self, name: str, section: int, *, seed: int | None = None, prompt: str | None = None
    ) -> VideoStatus:
        """Make a section of a video and all later ones again, as a new video; the old one stays as it is.

        Args:
            name: id of the video, which must not be at work.
            section: in generation order, from 0.
            seed: of that section's noise.
            prompt: of that section and all later ones.

        Raises:
            QueueFullError: as many wait as may.
            IsoframeError: nothing would change, there is no such section, or the video is at work.
        """
        return self._make_copy(name, lambda folder: folder.redo(section, seed=seed, prompt=prompt))

    def reproduce(self, name: str) -> VideoStatus:
        """Make a video once more from nothing, as a new one: its file should be the same.

        Raises:
            QueueFullError: as many wait as may.
            InputError: the video is at work.
        """
        return self._make_copy(name, lambda folder: folder.sections.remove_from(0))

    def keep(self, path: Path) -> Path:
        """Another name of a file for videos to come, which lasts as long as one of them needs it."""
        make_folder("service", self._kept, is_private=True)
        kept = self._kept / f"{secrets.token_hex(12)}{path.suffix}"
        link_or_copy(path, kept)
        return kept

    def prioritize(self, name: str, priority: int) -> None:
        """Have a video that waits come before those of a lower priority; others stay as they are."""
        with self._lock:
            entry = self._find(name)
            if entry.job is not None and entry.job.state is JobState.QUEUED:
                path = entry.path
                write_note(path, replace(read_asked(path), priority=priority))
                entry.job.priority = priority

    def folder(self, name: str) -> JobFolder:
        """Folder of the job that makes or made a video."""
        with self._lock:
            return self._find(name).folder

    def queue(self) -> list[tuple[VideoStatus, int]]:
        """Videos that run or wait, with their priorities: what runs, then what waits in its order."""
        with self._lock:
            found = [
                (status, entry.job.priority)
                for entry in self._videos.values()
                if entry.job is not None and (status := entry.status()).state.is_under_way
            ]
        return sorted(
            found, key=lambda pair: (pair[0].state is not JobState.RUNNING, -pair[1], pair[0].created)
        )

    def delete(self, name: str) -> None:
        """Remove a video and all its files; one at work is cancelled first and goes when it has stopped."""
        with self._lock:
            entry = self._find(name)
            if entry.job is None or not entry.is_live:
                remove_job(entry.path)
                del self._videos[name]
            else:
                del self._videos[name]
                # Its end removes the files, or the next start after a crash.
                _try_to_write_end(entry.path, End(state=JobState.DELETED, ended=time.time()))
                entry.job.cancel()

    def events(self, name: str, after: str | None = None) -> tuple[list[tuple[str, LogEntry]], bool]:
        """What has happened to a video since, without waiting, and whether no more will.

        Args:
            name: id of the video.
            after: key of the last event that the reader has; what is none of this run of the job has all come again. The
                events of a video that ended long ago or before a restart are gone.
        """
        with self._lock:
            return self._find(name).events(after)

    def wait(self, name: str, timeout: float | None = None) -> VideoStatus:
        """How the video stands when it is over or paused, the service closes, or ``timeout`` seconds are over."""
        with self._left:
            entry = self._find(name)
            self._left.wait_for(lambda: self._is_closing or not entry.is_live, timeout)
            return self.get(name)

    def video_path(self, name: str) -> Path:
        """Path of the finished MP4.

        Raises:
            NotFinishedError: it is not done.
        """
        with self._lock:
            entry = self._find(name)
            state = entry.status().state
        if state is not JobState.DONE:
            raise NotFinishedError(f"the video is {state}; its file is there when it is done")
        path = entry.folder.record.output
        if not path.is_file():
            raise NotFinishedError("the video was made, but somebody removed its file")
        return path

    def preview_path(self, name: str, section: int) -> Path:
        """The latest picture of a section (generation order, from 0).

        Raises:
            NotFinishedError: the section was not drawn.
        """
        path = self.folder(name).path / "previews" / f"section_{section:03d}.png"
        if not path.is_file():
            raise NotFinishedError(
                f"section {section} has no picture; ask for previews, and wait for its first step"
            )
        return path

    def counts(self) -> dict[JobState, int]:
        """How many videos are in each state."""
        found = Counter(status.state for status in self._statuses())
        return {state: found[state] for state in _TOLD_STATES}

    def retry_seconds(self) -> int:
        """When there may be room in the queue: when the first of what runs is over, as expected or as videos lately took."""
        statuses = self._statuses()
        left = [
            status.seconds_left
            for status in statuses
            if status.state is JobState.RUNNING and status.seconds_left is not None
        ]
        if not left:
            ends = sorted((s.ended, s.created) for s in statuses if s.state is JobState.DONE and s.ended)
            spans = [
                end - max(created, before) for (before, _), (end, created) in pairwise([(0.0, 0.0), *ends])
            ]
            left = [median(spans[-_NUM_RECENT:])] if spans else []
        return min(max(round(min(left, default=5)), 1), _LONGEST_WAIT_SECONDS)

    def announce_close(self) -> None:
        """Have readers of events leave, as :meth:`close` follows."""
        with self._left:
            self._is_closing = True
            self._left.notify_all()

    def close(self) -> None:
        """Stop what runs; the next service in this folder goes on with it. Closing twice is allowed."""
        self.announce_close()
        self._workers.close()
        self._exit.close()

    def __enter__(self) -> "VideoService":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, name: str) -> VideoEntry:
        """The video of this id; the caller has the lock.

        Raises:
            UnknownVideoError: there is none.
        """
        entry = self._videos.get(name)
        if entry is None:
            raise UnknownVideoError("there is no video of this id")
        if not entry.is_there:
            # Somebody else removed it, `isoframe jobs clean` for one.
            del self._videos[name]
            raise UnknownVideoError("there is no video of this id, its folder was removed")
        return entry

    def _statuses(self) -> list[VideoStatus]:
        with self._lock:
            return [entry.status() for entry in self._videos.values()]

    def _stop(self, name: str, state: JobState) -> VideoStatus:
        with self._lock:
            entry = self._find(name)
            status = entry.status()
            if status.state.is_under_way or status.state is JobState.PAUSED:
                # Before the job knows: a crash in between must not have it resumed.
                _try_to_write_end(entry.path, End(state=state, ended=time.time()))
                entry.stopped_as = state
                if entry.job is not None and entry.is_live:
                    entry.job.cancel()
                else:
                    entry.end(replace(status, state=state))
            return entry.status()

    def _make(self, submit: Callable[[Path], Job], asked: Asked) -> VideoStatus:
        """Have a new video made by the job that ``submit`` starts in a folder."""
        # One after the other: the bound of the queue holds, and so does that of the memory for images.
        with self._creating:
            if (known := self._known(asked)) is not None:
                return known
            self._check_room()
            path = self._jobs / new_name()
            try:
                job = submit(path)
                try:
                    write_note(path, asked)
                except BaseException:
                    job.cancel()
                    raise
                return self._watch(job, asked)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise

    def _make_copy(self, name: str, change: Callable[[JobFolder], None]) -> VideoStatus:
        """Have a changed copy of a video made."""
        original = self.folder(name)
        asked = replace(read_asked(original.path), created=time.time(), key=None, digest=None)

        def submit(path: Path) -> Job:
            copy = original.copy(path, path / "video.mp4")
            change(copy)
            return self._workers.resume(copy, asked)

        return self._make(submit, asked)

    def _known(self, asked: Asked) -> VideoStatus | None:
        """The video that was asked for under the same key."""
        name, digest = self._keys.get(asked.key or "", ("", None))
        with self._lock:
            if name not in self._videos:
                return None
            if digest != asked.digest:
                raise FieldError(
                    "idempotency-key", "idempotency-key was given to another request; take a new one"
                )
            return self._find(name).status()

    def _remember(self, name: str, asked: Asked) -> None:
        if asked.key is not None:
            self._keys[asked.key] = name, asked.digest

    def _check_room(self) -> None:
        waiting = sum(status.state is JobState.QUEUED for status in self._statuses())
        if waiting >= self._max_queued:
            raise QueueFullError(
                f"{waiting} videos wait, and no more than {self._max_queued} may; try again later"
            )

    def _watch(self, job: Job, asked: Asked) -> VideoStatus:
        """Have everybody know of a job; one that the service does not know must not run."""
        try:
            # Its end is written after this: only then is the service told of it.
            forget_end(job.path)
            entry = VideoEntry(job.path, job.folder, describe(job.folder, created=asked.created), job)
        except BaseException:
            job.cancel()
            raise
        with self._lock:
            self._videos[job.path.name] = entry
            self._remember(job.path.name, asked)
            status = entry.status()
        job.add_done_callback(lambda _: self._on_end(entry, job))
        return status

    def _on_end(self, entry: VideoEntry, job: Job) -> None:
        """Called by the thread that ended the job."""
        # What stops with the service goes on with the next one.
        if self._is_closing and job.state is JobState.CANCELLED:
            return
        error = job.error if job.state is JobState.FAILED else None
        failure = None if error is None else failure_of(error, self._jobs)
        with self._left:
            status = replace(entry.status(), ended=time.time(), seconds_left=None, failure=failure)
            entry.end(status)
            self._left.notify_all()
            if self._videos.get(status.id) is not entry:
                # It was deleted.
                remove_job(job.path)
                return
            if status.failure is not None and status.ended is not None:
                end = End(state=status.state, ended=status.ended, failure=status.failure)
                _try_to_write_end(job.path, end)
            self._forget_events()

    def _forget_events(self) -> None:
        """Let go of the events of finished jobs, except of the latest of them."""
        ended = [entry for entry in self._videos.values() if entry.job is not None and not entry.is_live]
        for entry in sorted(ended, key=lambda entry: entry.status().ended or 0)[:-_NUM_RECENT]:
            entry.job = None

    def _take_up(self, found: FoundVideo) -> None:
        """Have a video of an earlier service known, and go on with one that it was making."""
        status = found.status
        if status.state.is_under_way and isinstance(found.job, JobFolder):
            # Whatever one video fails with, the service starts.
            try:
                self._watch(self._workers.resume(found.job, found.asked), found.asked)
                return
            except Exception as error:
                failure = failure_of(error, self._jobs)
                status = replace(status, state=JobState.FAILED, ended=time.time(), failure=failure)
        with self._lock:
            self._videos[status.id] = VideoEntry(found.path, found.job, status)
            self._remember(status.id, found.asked)


def _try_to_write_end(path: Path, end: End) -> None:
    """A full disk is one reason to fail, to stop a video, or to delete one."""
    try:
        write_note(path, end)
    except InputError as error:
        _logger.warning(
            "that %s is %s could not be written, a restart does not know it: %s", path, end.state, error
        )
