"""Jobs that wait for one engine or several, and the threads that work on them."""

import contextlib
import logging
import threading
from collections.abc import Set
from pathlib import Path

from ..errors import ConfigError, InputError, QueueFullError
from .job import Job
from .state import JobState

_logger = logging.getLogger(__name__)


class JobQueue:
    """Runs jobs one after the other, the highest priority first, equals in the order in which they came.

    Threads live while there are jobs, so an idle engine holds none. The program ends when the jobs do; :meth:`close`
    ends them earlier.
    """

    def __init__(self, max_queued: int, num_threads: int = 1) -> None:
        """A queue in which at most ``max_queued`` jobs wait, and of which ``num_threads`` run at a time."""
        self._max_queued = max_queued
        self._num_threads = num_threads
        # In the order in which they came.
        self._waiting: list[Job] = []
        self._lock = threading.Lock()
        # The job of every thread; None between two jobs.
        self._threads: dict[threading.Thread, Job | None] = {}
        self._is_closed = False

    def put(self, job: Job) -> None:
        """Add a job.

        Raises:
            QueueFullError: as many as may wait do so already.
            ConfigError: the queue is closed.
        """
        with self._lock:
            if self._is_closed:
                raise ConfigError("the engine must be open to take jobs, it is closed; load another one")
            waiting = [other for other in self._waiting if other.state is JobState.QUEUED]
            if len(waiting) >= self._max_queued:
                raise QueueFullError(
                    f"{len(waiting)} jobs wait, max_queued_jobs={self._max_queued} may; submit it again later"
                )
            ahead = sum(other.priority >= job.priority for other in waiting)
            job.queued(ahead + sum(running is not None for running in self._threads.values()))
            # Cancelled ones go here.
            self._waiting = [*waiting, job]
            try:
                self._start_thread()
            except RuntimeError as error:
                if not self._threads:
                    self._waiting = waiting
                    raise QueueFullError(f"no thread can be started for the job: {error}") from error

    def check_free(self, outputs: Set[str], folder: Path) -> None:
        """Raise :class:`InputError` where a job that is not over, of another ``folder``, writes one of ``outputs``."""
        with self._lock:
            jobs = [*self._waiting, *(job for job in self._threads.values() if job is not None)]
        for job in jobs:
            taken = job.outputs & outputs
            if taken and not job.state.is_over and job.path.absolute() != folder.absolute():
                raise InputError(f"output {min(taken)} is that of the job {job.path}; choose another name")

    def close(self) -> None:
        """Cancel all jobs, and wait for those at work; closing twice is allowed, and so is closing in a job's callback."""
        with self._lock:
            self._is_closed = True
            jobs = list(self._waiting)
            jobs += [job for job in self._threads.values() if job is not None]
            # A callback of a job runs in its thread, which cannot wait for itself.
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        for job in jobs:
            job.cancel()
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        try:
            while (job := self._take()) is not None:
                try:
                    job.run()
                except BaseException:
                    # What was called with the end of the job; those that wait are not to wait for ever.
                    _logger.exception("the end of job %s could not be told", job.path)
        finally:
            self._leave()

    def _leave(self) -> None:
        """End this thread, whatever the reason: were it counted on, the jobs after it would wait for ever."""
        with self._lock:
            self._threads.pop(threading.current_thread(), None)
            if self._waiting:
                # Else the next job to be put here tries it again.
                with contextlib.suppress(RuntimeError):
                    self._start_thread()

    def _start_thread(self) -> None:
        """Another thread, if there may be one; the caller has the lock."""
        if len(self._threads) < self._num_threads:
            thread = threading.Thread(target=self._work, name="isoframe-jobs")
            self._threads[thread] = None
            try:
                thread.start()
            except BaseException:
                del self._threads[thread]
                raise

    def _take(self) -> Job | None:
        with self._lock:
            thread = threading.current_thread()
            if not self._waiting:
                del self._threads[thread]
                return None
            # Priorities may have changed since they came; of equals the first one is taken.
            job = max(self._waiting, key=lambda waiting: waiting.priority)
            self._waiting.remove(job)
            self._threads[thread] = job
            return job
