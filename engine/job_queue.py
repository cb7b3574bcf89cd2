"""Jobs that wait for one engine, and the thread that works on them."""

import heapq
import itertools
import threading

from .errors import ConfigError, QueueFullError
from .job import Job


class JobQueue:
    """Runs jobs one after the other, the highest priority first, equals in the order in which they came.

    The thread lives while there are jobs, so an idle engine holds none. The program ends when the jobs do; :meth:`close`
    ends them earlier.
    """

    def __init__(self, max_queued: int) -> None:
        """A queue in which at most ``max_queued`` jobs wait."""
        self._max_queued = max_queued
        self._waiting: list[tuple[int, int, Job]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._running: Job | None = None
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
            waiting = [entry for entry in self._waiting if entry[2].state == "queued"]
            if len(waiting) >= self._max_queued:
                raise QueueFullError(
                    f"{len(waiting)} jobs wait, max_queued_jobs={self._max_queued} may; submit it again later"
                )
            # Cancelled ones go here.
            self._waiting = waiting
            heapq.heapify(self._waiting)
            job.queued(
                sum(entry[2].priority >= job.priority for entry in waiting) + (self._running is not None)
            )
            heapq.heappush(self._waiting, (-job.priority, next(self._numbers), job))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="isoframe-jobs")
                self._thread.start()

    def close(self) -> None:
        """Cancel all jobs, and wait for the one at work; closing twice is allowed."""
        with self._lock:
            self._is_closed = True
            jobs = [job for _, _, job in self._waiting] + ([self._running] if self._running else [])
            thread = self._thread
        for job in jobs:
            job.cancel()
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while (job := self._take()) is not None:
            job.run()

    def _take(self) -> Job | None:
        with self._lock:
            self._running = heapq.heappop(self._waiting)[2] if self._waiting else None
            if self._running is None:
                self._thread = None
            return self._running
