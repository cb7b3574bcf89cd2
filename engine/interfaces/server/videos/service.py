"""The videos of one model: create, look up, cancel, delete; all of them survive a restart."""

import contextlib
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ....errors import InputError, IsoframeError, QueueFullError
from ....files import exclusive_lock, make_folder
from ....jobs.folder import JobFolder
from ....jobs.job import Job
from ....jobs.log import LogEntry
from ....jobs.run import DONE
from ....request.config import Request
from .errors import NotFinishedError, UnknownVideoError, failure_of
from .index import VideoIndex
from .limits import Limits
from .live_job import EventKey, LiveJob, VideoFailure, VideoStatus, describe
from .notes import (
    CANCELLED,
    DELETED,
    PAUSED,
    Asked,
    End,
    forget_end,
    read_asked,
    read_end,
    write_asked,
    write_end,
)
from .workers import ModelCard, Workers

_logger = logging.getLogger(__name__)
_NAME = re.compile(r"video_[0-9a-f]{24}")
# Jobs whose events are still kept after they ended; up to some megabytes each.
_NUM_RECENT = 8
_LONGEST_WAIT_SECONDS = 3600


class VideoService:
    """Knows no protocol; every method may be called from any thread.

    Videos lie in ``folder/jobs``, one job folder each. ``folder/index.sqlite`` is made of them at every start, and what a
    crash or :meth:`close` interrupted goes on.
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
        # Told when a job has left the live ones, and when the service closes.
        self._left = threading.Condition(self._lock)
        self._creating = threading.Lock()
        self._live: dict[str, LiveJob] = {}
        self._recent: OrderedDict[str, LiveJob] = OrderedDict()
        # Of the live ones: their ends remove them, noted or not.
        self._deleted: set[str] = set()
        self._is_closing = False
        self._exit = contextlib.ExitStack()
        make_folder("service", self._jobs)
        self._exit.enter_context(
            exclusive_lock(
                folder / "lock", f"folder {folder} is in use by another service; choose another one"
            )
        )
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._exit.close)
            self._index = VideoIndex(folder / "index.sqlite", [])
            self._exit.callback(self._index.close)
            self._forget_kept()
            self._resume_all()
            on_failure.pop_all()

    @property
    def card(self) -> ModelCard:
        """The model."""
        return self._workers.card

    @property
    def jobs_path(self) -> Path:
        """Where the folders of the videos are."""
        return self._jobs

    @property
    def is_closing(self) -> bool:
        """Whether the service is stopping."""
        return self._is_closing

    def create(self, request: Request, *, priority: int = 0, has_previews: bool = False) -> VideoStatus:
        """Have a video made.

        Raises:
            QueueFullError: as many wait as may.
            FieldError: the request is beyond the limits.
            IsoframeError: the engine refuses it.
        """
        self.limits.check(request)
        # One after the other: the bound of the queue holds, and so does that of the memory for images.
        with self._creating:
            self._check_room()
            name = _new_name()
            asked = Asked(created=time.time(), priority=priority, has_previews=has_previews)
            with _nothing_left_of_failures(self._jobs / name):
                job = self._workers.submit(self._jobs / name, request, asked)
                with _cancelled_on_failure(job):
                    write_asked(job.path, asked)
                    return self._watch(name, job, asked)

    def get(self, name: str) -> VideoStatus:
        """How a video stands.

        Raises:
            UnknownVideoError: there is none of this id.
        """
        with self._lock:
            status, live = self._index.get(name), self._live.get(name)
        if status is None:
            raise UnknownVideoError("there is no video of this id")
        if live is not None:
            return live.status()
        if not JobFolder.is_job(self._jobs / name):
            # Somebody else removed it, `isoframe jobs clean` for one.
            self._index.remove(name)
            raise UnknownVideoError("there is no video of this id, its folder was removed")
        return status

    def page(
        self, after: str | None = None, limit: int = 20, *, is_oldest_first: bool = False
    ) -> list[VideoStatus]:
        """At most ``limit`` videos, those that follow ``after``.

        Raises:
            UnknownVideoError: ``after`` is none.
        """
        if after is not None:
            self.get(after)
        videos = self._index.page(after, limit, is_oldest_first=is_oldest_first)
        with self._lock:
            live = dict(self._live)
        return [live[video.id].status() if video.id in live else video for video in videos]

    def cancel(self, name: str) -> VideoStatus:
        """Stop making a video: at once if it waits, else after the step at hand. One that is over stays as it is.

        Raises:
            UnknownVideoError: there is none of this id.
        """
        return self._stop(name, CANCELLED)

    def pause(self, name: str) -> VideoStatus:
        """Stop making a video as :meth:`cancel` does, but only until :meth:`go_on`; a restart leaves it paused.

        Raises:
            UnknownVideoError: there is none of this id.
        """
        return self._stop(name, PAUSED)

    def go_on(self, name: str) -> VideoStatus:
        """Take up a video that was paused or cancelled, or failed, where it was. Others stay as they are.

        Raises:
            UnknownVideoError: there is none of this id.
            QueueFullError: as many wait as may.
            IsoframeError: the engine refuses it.
        """
        # The job that was stopped has to be over.
        if self.wait(name, 0).state in (PAUSED, CANCELLED, "failed"):
            self._wait_until_left(name)
        with self._creating:
            status, path = self.get(name), self._jobs / name
            if status.state not in (PAUSED, CANCELLED, "failed"):
                return status
            self._check_room()
            asked, end = read_asked(path), read_end(path)
            forget_end(path)
            try:
                job = self._workers.resume(path, asked)
                with _cancelled_on_failure(job):
                    return self._watch(name, job, asked)
            except BaseException:
                if end is not None:
                    write_end(path, end)
                raise

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
            UnknownVideoError: there is none of this id.
            QueueFullError: as many wait as may.
            IsoframeError: nothing would change, there is no such section, or the video is at work.
        """
        return self._create_copy(name, lambda folder: folder.redo(section, seed=seed, prompt=prompt))

    def repeat(self, name: str) -> VideoStatus:
        """Make a video once more from nothing, as a new one: its file should be the same.

        Raises:
            UnknownVideoError: there is none of this id.
            QueueFullError: as many wait as may.
            InputError: the video is at work.
        """
        return self._create_copy(name, lambda folder: folder.sections.remove_from(0))

    def keep(self, path: Path) -> Path:
        """Another name of a file for videos to come, which lasts as long as one of them needs it."""
        make_folder("service", self._kept)
        kept = self._kept / f"{secrets.token_hex(12)}{path.suffix}"
        try:
            os.link(path, kept)
        except OSError:
            # A file system without links.
            shutil.copyfile(path, kept)
        return kept

    def prioritize(self, name: str, priority: int) -> None:
        """Have a video that waits come before those of a lower priority; others stay as they are.

        Raises:
            UnknownVideoError: there is none of this id.
        """
        self.get(name)
        with self._lock:
            live = self._live.get(name)
            if live is not None and live.job.state == "queued":
                write_asked(live.job.path, replace(read_asked(live.job.path), priority=priority))
                live.job.priority = priority

    def folder(self, name: str) -> JobFolder:
        """The job of a video.

        Raises:
            UnknownVideoError: there is none of this id.
        """
        self.get(name)
        return JobFolder.open(self._jobs / name)

    def queue(self) -> list[tuple[VideoStatus, int]]:
        """Videos that are not over, with their priorities: what runs, then what waits in its order."""
        with self._lock:
            lives = list(self._live.values())
        found = [(live.status(), live.job.priority) for live in lives]
        found = [(status, priority) for status, priority in found if not status.is_over]
        return sorted(found, key=lambda pair: (pair[0].state != "running", -pair[1], pair[0].created))

    def delete(self, name: str) -> None:
        """Remove a video and all its files; one at work is cancelled first and goes when it has stopped.

        Raises:
            UnknownVideoError: there is none of this id.
        """
        with self._lock:
            self.get(name)
            path = self._jobs / name
            self._index.remove(name)
            self._recent.pop(name, None)
            live = self._live.get(name)
            if live is None:
                _remove(path)
            else:
                # Its end removes the files, or the next start after a crash.
                self._deleted.add(name)
                _try_to_write_end(path, End(state=DELETED, ended=time.time()))
                live.job.cancel()

    def events(
        self, name: str, after: EventKey | None = None
    ) -> tuple[list[tuple[EventKey, LogEntry]], bool]:
        """What has happened to a video since, without waiting, and whether no more will.

        Args:
            name: id of the video.
            after: what the reader has; a key from before a restart has all come again. Those of a video that ended long ago
                or before the restart are gone.

        Raises:
            UnknownVideoError: there is none of this id.
        """
        self.get(name)
        with self._lock:
            live = self._live.get(name) or self._recent.get(name)
        return ([], True) if live is None else live.events(after)

    def wait(self, name: str, timeout: float | None = None) -> VideoStatus:
        """How the video stands when it is over, or after ``timeout`` seconds.

        Raises:
            UnknownVideoError: there is none of this id.
        """
        over = threading.Event()
        with self._lock:
            live = self._live.get(name)
        if live is not None:
            live.job.add_done_callback(lambda _: over.set())
            over.wait(timeout)
        return self.get(name)

    def video_path(self, name: str) -> Path:
        """The MP4.

        Raises:
            UnknownVideoError: there is none of this id.
            NotFinishedError: it is not done.
        """
        status = self.get(name)
        if status.state != "done":
            raise NotFinishedError(f"the video is {status.state}; its file is there when it is done")
        path = JobFolder.open(self._jobs / name).record.output
        if not path.is_file():
            raise NotFinishedError("the video was made, but somebody removed its file")
        return path

    def preview_path(self, name: str, section: int) -> Path:
        """The latest picture of a section (generation order, from 0).

        Raises:
            UnknownVideoError: there is none of this id.
            NotFinishedError: the section was not drawn.
        """
        self.get(name)
        path = self._jobs / name / "previews" / f"section_{section:03d}.png"
        if not path.is_file():
            raise NotFinishedError(
                f"section {section} has no picture; ask for previews, and wait for its first step"
            )
        return path

    def counts(self) -> dict[str, int]:
        """Videos by state."""
        ended = self._index.counts()
        with self._lock:
            states = [live.job.state for live in self._live.values()]
        waiting = {state: states.count(state) for state in ("queued", "running")}
        return {**waiting, **{state: ended.get(state, 0) for state in (PAUSED, "done", "failed", CANCELLED)}}

    def retry_seconds(self) -> int:
        """When there may be room in the queue."""
        with self._lock:
            lives = list(self._live.values())
        left = [live.status().seconds_left for live in lives if live.job.state == "running"]
        soonest = min((seconds for seconds in left if seconds is not None), default=5)
        return min(max(round(soonest), 1), _LONGEST_WAIT_SECONDS)

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

    def _stop(self, name: str, state: str) -> VideoStatus:
        with self._lock:
            status, end = self.get(name), End(state=state, ended=time.time())
            live = self._live.get(name)
            if live is not None and not status.is_over:
                # Before the job knows: a crash in between must not have it resumed.
                _try_to_write_end(self._jobs / name, end)
                live.job.cancel()
            elif status.state == PAUSED:
                write_end(self._jobs / name, end)
                self._index.put(replace(status, state=state))
            return self.get(name)

    def _create_copy(self, name: str, change: Callable[[JobFolder], None]) -> VideoStatus:
        """Have a changed copy of a video made."""
        self.get(name)
        with self._creating:
            self._check_room()
            new = _new_name()
            path = self._jobs / new
            asked = replace(read_asked(self._jobs / name), created=time.time())
            with _nothing_left_of_failures(path):
                change(JobFolder.open(self._jobs / name).copy(path, path / "video.mp4"))
                write_asked(path, asked)
                job = self._workers.resume(path, asked)
                with _cancelled_on_failure(job):
                    return self._watch(new, job, asked)

    def _check_room(self) -> None:
        with self._lock:
            waiting = sum(live.job.state == "queued" for live in self._live.values())
        if waiting >= self._max_queued:
            raise QueueFullError(
                f"{waiting} videos wait, and no more than {self._max_queued} may; try again later"
            )

    def _watch(self, name: str, job: Job, asked: Asked) -> VideoStatus:
        live = LiveJob(job, describe(name, JobFolder.open(job.path), created=asked.created))
        with self._lock:
            self._index.put(live.status())
            self._live[name] = live
        status = live.status()
        job.add_done_callback(lambda _: self._on_end(name, live))
        return status

    def _wait_until_left(self, name: str) -> None:
        """Until the end of the job at hand is kept, which follows the end itself; or until the service closes."""
        with self._left:
            live = self._live.get(name)
            if live is not None:
                self._left.wait_for(lambda: self._is_closing or self._live.get(name) is not live)

    def _on_end(self, name: str, live: LiveJob) -> None:
        """Called by the thread that ended the job."""
        # What stops with the service goes on with the next one.
        if self._is_closing and live.job.state == CANCELLED:
            return
        with self._left:
            del self._live[name]
            self._left.notify_all()
            if name in self._deleted:
                self._deleted.remove(name)
                _remove(live.job.path)
                return
            end = read_end(live.job.path)
            status = replace(live.status(), ended=time.time(), seconds_left=None, failure=_failure(live.job))
            if end is not None and status.state == CANCELLED:
                status = replace(status, state=end.state)
            self._index.put(status)
            _keep_failure(live.job.path, status)
            self._recent[name] = live
            if len(self._recent) > _NUM_RECENT:
                self._recent.popitem(last=False)

    def _forget_kept(self) -> None:
        """Remove the kept files that no video needs any more."""
        if not self._kept.is_dir():
            return
        needed = set()
        for path in filter(JobFolder.is_job, self._jobs.iterdir()):
            try:
                video = JobFolder.open(path).record.request.video
            except InputError:
                # It may need any of them.
                return
            if video is not None:
                needed.add(Path(video).name)
        for path in self._kept.iterdir():
            if path.name not in needed:
                path.unlink()

    def _resume_all(self) -> None:
        found = sorted(self._find_folders(), key=lambda pair: pair[1].created)
        for path, asked in found:
            try:
                folder = JobFolder.open(path)
            except InputError as error:
                _logger.warning("left as it is: %s", error)
                continue
            status = _ended_status(path.name, folder, asked)
            if status is not None:
                self._index.put(status)
                continue
            try:
                self._watch(path.name, self._workers.resume(path, asked), asked)
            except (IsoframeError, OSError) as error:
                failure = failure_of(error, self._jobs)
                status = replace(describe(path.name, folder, created=asked.created), failure=failure)
                self._index.put(replace(status, state="failed", ended=time.time()))

    def _find_folders(self) -> Iterator[tuple[Path, Asked]]:
        """Jobs; what is left of those that were being made or deleted when the process ended goes."""
        for path in list(self._jobs.iterdir()):
            if _NAME.fullmatch(path.name) is None:
                continue
            end = read_end(path)
            if not JobFolder.is_job(path) or (end is not None and end.state == DELETED):
                _remove(path)
            else:
                yield path, read_asked(path)


def _new_name() -> str:
    return f"video_{secrets.token_hex(12)}"


@contextlib.contextmanager
def _nothing_left_of_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


@contextlib.contextmanager
def _cancelled_on_failure(job: Job) -> Iterator[None]:
    """A job that the service does not know must not run."""
    try:
        yield
    except BaseException:
        job.cancel()
        raise


def _ended_status(name: str, folder: JobFolder, asked: Asked) -> VideoStatus | None:
    """Of a job that is not to be resumed."""
    status, job = describe(name, folder, created=asked.created), folder.status()
    if job.is_done:
        ended = (folder.path / DONE).stat().st_mtime
        return replace(
            status, state="done", progress=1.0, num_finished_sections=job.num_sections, ended=ended
        )
    end = read_end(folder.path)
    if end is None:
        return None
    finished = job.num_finished_sections
    return replace(
        status,
        state=end.state,
        ended=end.ended,
        failure=end.failure,
        num_finished_sections=finished,
        progress=finished / job.num_sections,
    )


def _failure(job: Job) -> VideoFailure | None:
    if job.state != "failed":
        return None
    try:
        job.result(0)
    except Exception as error:
        return failure_of(error, job.path.parent)
    raise AssertionError("a job that failed raises its error")


def _keep_failure(path: Path, status: VideoStatus) -> None:
    if status.failure is not None and status.ended is not None:
        _try_to_write_end(path, End(state="failed", ended=status.ended, failure=status.failure))


def _try_to_write_end(path: Path, end: End) -> None:
    """A full disk is one reason to fail, to stop a video, or to delete one."""
    try:
        write_end(path, end)
    except OSError as error:
        _logger.warning(
            "that %s is %s could not be written, a restart goes on with it: %s", path, end.state, error
        )


def _remove(path: Path) -> None:
    """Without its record the folder is no job any more, whatever happens next."""
    (path / "job.json").unlink(missing_ok=True)
    shutil.rmtree(path)
