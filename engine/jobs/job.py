"""A job that another thread works on."""

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import IsoframeError, JobCancelledError, exit_code
from ..events import (
    CancelledEvent,
    DoneEvent,
    Event,
    FailureEvent,
    FileEvent,
    PartialEvent,
    QueuedEvent,
    StartedEvent,
)
from ..media.video import Video
from .log import JobLog, LogEntry
from .state import JobState

if TYPE_CHECKING:
    from .folder import JobFolder

_logger = logging.getLogger(__name__)

# What a shell reports for Ctrl-C.
_CANCELLED_EXIT_CODE = 130


class Job:
    """One video on its way; every method may be called from any thread.

    Attributes:
        folder: the job on disk, the only truth about it; :meth:`Engine.resume` goes on from it.
        priority: jobs with a higher one run first; it may be changed while the job waits.
        outputs: paths that no other job of the queue may write.
    """

    def __init__(
        self,
        folder: "JobFolder",
        *,
        priority: int,
        render: Callable[[Callable[[Event], None]], Video],
        release: Callable[[], None] = lambda: None,
        outputs: frozenset[str] = frozenset(),
    ) -> None:
        """Use :meth:`Engine.submit`.

        Args:
            folder: the job on disk.
            priority: jobs with a higher one run first.
            render: makes the video and reports to the function that it is given.
            release: gives back the device's memory when the job was cancelled or failed.
            outputs: paths that no other job of the queue may write.
        """
        self.folder = folder
        self.priority = priority
        self.outputs = outputs
        self._render: Callable[[Callable[[Event], None]], Video] | None = render
        self._release = release
        self._log = JobLog(folder.record.request.fps)
        self._is_cancelled = False
        self._state = JobState.QUEUED
        self._outcome: Future[Video] = Future()
        self._lock = threading.RLock()

    @property
    def path(self) -> Path:
        """The job's folder."""
        return self.folder.path

    @property
    def state(self) -> JobState:
        """QUEUED, RUNNING, DONE, FAILED or CANCELLED."""
        return self._state

    @property
    def is_cancelled(self) -> bool:
        """Whether the job was told to stop, though it may still be at work."""
        return self._is_cancelled

    @property
    def error(self) -> BaseException | None:
        """What the job failed with, or its cancelling; None while it is not over, and when it is done."""
        return self._outcome.exception() if self._outcome.done() else None

    def events(self, after: int = -1) -> Iterator[LogEntry]:
        """What has happened, then what happens, until the job is over; every call starts anew.

        Args:
            after: index of the last event that the reader has. The oldest of more than 4096 events are gone.
        """
        return self._log.entries(after)

    def read_events(self, after: int = -1) -> tuple[list[LogEntry], bool]:
        """What has happened since, and whether the job is over; does not wait. ``after`` as for :meth:`events`."""
        return self._log.read(after)

    def add_done_callback(self, function: "Callable[[Job], None]") -> None:
        """Have ``function`` called with the job when it is over: by the thread that ends it, or now."""
        self._outcome.add_done_callback(lambda _: function(self))

    def cancel(self) -> bool:
        """Stop the job: at once in the queue, else after the step at hand; False if it is over already.

        Finished sections stay in the folder and in a playable file beside the output.
        """
        with self._lock:
            if self._state.is_over:
                return False
            self._is_cancelled, is_waiting = True, self._state is JobState.QUEUED
            if is_waiting:
                self._end(JobState.CANCELLED, _cancelled_event(()))
        if is_waiting:
            # Without the lock: callbacks may ask the job something, and so may those whom they wait for.
            self._outcome.set_exception(self._cancelled_error())
        return True

    def result(self, timeout: float | None = None) -> Video:
        """The video, once it is there.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            TimeoutError: the job is not over yet.
            JobCancelledError: it was cancelled.
            IsoframeError: it failed; other exceptions too come as they were raised.
        """
        if not wait([self._outcome], timeout).done:
            raise TimeoutError(f"job {self.path} is {self._state} after {timeout} s")
        return self._outcome.result()

    def queued(self, num_ahead: int) -> None:
        """Report that the job waits behind ``num_ahead`` others; called by the queue."""
        self._log.append(QueuedEvent(num_ahead=num_ahead, priority=self.priority))

    def run(self) -> None:
        """Make the video; called by the queue. No exception leaves it."""
        with self._lock:
            if self._state.is_over:
                return
            self._state = JobState.RUNNING
        self._log.append(StartedEvent(job_dir=self.path))
        assert self._render is not None, "a job runs once"
        try:
            video = self._render(self._on_event)
        except JobCancelledError as error:
            self._fail(JobState.CANCELLED, _cancelled_event(_notes(error)), error)
        except BaseException as error:
            # A callback's SystemExit and the panic of a library in Rust end this job, and no other.
            if not isinstance(error, IsoframeError | OSError):
                _logger.exception("job %s failed", self.path)
            if not isinstance(error, Exception):
                # Who asks for the result is not to be ended by it.
                failure = IsoframeError(f"the job was ended by {type(error).__name__}: {error}")
                failure.__cause__ = error
                error = failure
            self._fail(JobState.FAILED, _failure_event(error), error)
        else:
            self._end(JobState.DONE, DoneEvent(path=video.path, num_frames=video.num_frames))
            self._outcome.set_result(video)

    def _on_event(self, event: Event) -> None:
        # A partial file comes because of the cancelling, and a whole one came before it: the video is there.
        if self._is_cancelled and not isinstance(event, PartialEvent | FileEvent):
            raise self._cancelled_error()
        self._log.append(event)

    def _cancelled_error(self) -> JobCancelledError:
        return JobCancelledError(f"job {self.path} was cancelled")

    def _fail(self, state: JobState, event: Event, error: BaseException) -> None:
        _forget_frames(error)
        # It holds the tensors of the job too.
        self._render = None
        try:
            self._release()
        except BaseException as left:
            # The device may be what failed. The job is over all the same, and its readers wait for the end.
            _logger.exception("job %s could not give back the device's memory", self.path)
            error.add_note(f"the device's memory could not be given back: {left}")
        self._end(state, event)
        self._outcome.set_exception(error)

    def _end(self, state: JobState, event: Event) -> None:
        """Have the job be over but for its outcome, which whoever calls this sets next."""
        with self._lock:
            # A job may be kept for long, what it was made from need not be.
            self._state, self._render = state, None
            self._log.append(event, is_last=True)


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what the frames of a traceback hold: the tensors of the job."""
    seen: set[int] = set()
    # Causes may go in circles where two errors are raised from each other.
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _notes(error: BaseException) -> tuple[str, ...]:
    return tuple(getattr(error, "__notes__", ()))


def _cancelled_event(notes: tuple[str, ...]) -> CancelledEvent:
    return CancelledEvent(signal="cancel", notes=notes, exit_code=_CANCELLED_EXIT_CODE)


def _failure_event(error: BaseException) -> FailureEvent:
    return FailureEvent(
        error=type(error).__name__, message=str(error), notes=_notes(error), exit_code=exit_code(error)
    )
