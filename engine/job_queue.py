"""Jobs that wait for one engine or several, and the threads that work on them."""

import heapq
import itertools
import threading

from .errors import ConfigError, QueueFullError
from .job import Job


class JobQueue:
    """Runs jobs one after the other, the highest priority first, equals in the order in which they came.

    Threads live while there are jobs, so an idle engine holds none. The program ends when the jobs do; :meth:`close`
    ends them earlier.
    """

    def __init__(self, max_queued: int, num_threads: int = 1) -> None:
        """A queue in which at most ``max_queued`` jobs wait, and of which ``num_threads`` run at a time."""
        self._max_queued = max_queued
        self._num_threads = num_threads
        self._waiting: list[tuple[int, int, Job]] = []
        self._numbers = itertools.count()
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
            waiting = [entry for entry in self._waiting if entry[2].state == "queued"]
            if len(waiting) >= self._max_queued:
                raise QueueFullError(
                    f"{len(waiting)} jobs wait, max_queued_jobs={self._max_queued} may; submit it again later"
                )
            # Cancelled ones go here.
            self._waiting = waiting
            heapq.heapify(self._waiting)
            ahead = sum(entry[2].priority >= job.priority for entry in waiting)
            job.queued(ahead + sum(running is not None for running in self._threads.values()))
            heapq.heappush(self._waiting, (-job.priority, next(self._numbers), job))
            if len(self._threads) < self._num_threads:
                thread = threading.Thread(target=self._work, name="isoframe-jobs")
                self._threads[thread] = None
                thread.start()

    def close(self) -> None:
        """Cancel all jobs, and wait for those at work; closing twice is allowed."""
        with self._lock:
            self._is_closed = True
            jobs = [job for _, _, job in self._waiting]
            jobs += [job for job in self._threads.values() if job is not None]
            threads = list(self._threads)
        for job in jobs:
            job.cancel()
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._take()) is not None:
            job.run()

    def _take(self) -> Job | None:
        with self._lock:
            thread = threading.current_thread()
            if not self._waiting:
                del self._threads[thread]
                return None
            self._threads[thread] = job = heapq.heappop(self._waiting)[2]
            return job
