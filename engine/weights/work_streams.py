"""Queues of work that run in order, and the events between them: on CUDA, in a thread, or in the caller.

The order of copies and compute is written once, over :class:`Stream`; so it is tested without a GPU.
"""

import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch

_Work = Callable[[], object]


class Event(Protocol):
    """A point in a stream."""

    def synchronize(self) -> None:
        """Block until the stream has reached it.

        Raises:
            Exception: what the stream failed with before it.
        """
        ...

    def seconds_since(self, origin: Any) -> float:
        """Time between two events of one kind of stream, once both are reached."""
        ...


class Stream(Protocol):
    """Work that runs in the order in which it was given."""

    def run(self, work: _Work) -> None:
        """Enqueue ``work``."""
        ...

    def record(self) -> Event:
        """An event that is reached when everything enqueued so far is done."""
        ...

    def wait(self, event: Any) -> None:
        """What is enqueued from now on begins after ``event``."""
        ...

    def close(self) -> None:
        """Drop what has not begun, and return when nothing runs any more."""
        ...


class HostEvent:
    """A point in a :class:`ThreadStream` or a :class:`CallerStream`."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._error: BaseException | None = None
        self._seconds = 0.0

    def reach(self, error: BaseException | None = None) -> None:
        """Let everyone who waits go on; ``error`` is raised there."""
        self._error = error
        self._seconds = time.perf_counter()
        self._reached.set()

    def synchronize(self) -> None:
        self._reached.wait()
        if self._error is not None:
            raise self._error

    def seconds_since(self, origin: "HostEvent") -> float:
        return self._seconds - origin._seconds


class CallerStream:
    """Runs everything at once in the thread that calls."""

    def run(self, work: _Work) -> None:
        work()

    def record(self) -> HostEvent:
        event = HostEvent()
        event.reach()
        return event

    def wait(self, event: Event) -> None:
        event.synchronize()

    def close(self) -> None:
        """Return at once: work is done when it is enqueued."""


class ThreadStream:
    """Runs in a thread of its own. After a failure nothing runs any more, and every later event raises it."""

    def __init__(self, name: str) -> None:
        self._worker = _Worker()
        self._thread = threading.Thread(target=self._worker.work, name=name, daemon=True)
        self._thread.start()
        # The thread does not hold the stream, so that one nobody closed ends with its last user, or with the
        # interpreter: a thread that still runs then takes the process down with it.
        self._end = weakref.finalize(self, _end, self._worker, self._thread)

    def run(self, work: _Work) -> None:
        self._worker.put(work)

    def record(self) -> HostEvent:
        event = HostEvent()
        self._worker.put(event)
        return event

    def wait(self, event: Event) -> None:
        self._worker.put(event.synchronize)

    def close(self) -> None:
        self._end()


def _end(worker: "_Worker", thread: threading.Thread) -> None:
    worker.stop()
    # The last user may be the stream's own work.
    if thread is not threading.current_thread():
        thread.join()


class _Worker:
    """The thread's side of a :class:`ThreadStream`."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[_Work | HostEvent | None] = queue.SimpleQueue()
        # Reentrant: the garbage collector may end a stream while this thread gives work to it.
        self._lock = threading.RLock()
        self._error: BaseException | None = None
        self._is_stopped = False

    def put(self, task: _Work | HostEvent) -> None:
        with self._lock:
            if not self._is_stopped:
                self._tasks.put(task)
            elif isinstance(task, HostEvent):
                # Nobody may wait for a stream that has ended.
                task.reach(self._error)

    def stop(self) -> None:
        with self._lock:
            self._is_stopped = True
            self._tasks.put(None)

    def work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if isinstance(task, HostEvent):
                task.reach(self._error)
            elif self._error is None and not self._is_stopped:
                self._run(task)
            # The loop would hold the memory behind the last task until the next one comes.
            del task

    def _run(self, task: _Work) -> None:
        try:
            task()
        except BaseException as error:  # whoever waits for the stream raises it
            self._error = error


class CudaEvent:
    """A point in a :class:`CudaStream`."""

    def __init__(self, stream: torch.cuda.Stream, *, is_timed: bool) -> None:
        self.event = torch.cuda.Event(enable_timing=is_timed)
        self.event.record(stream)

    def synchronize(self) -> None:
        self.event.synchronize()

    def seconds_since(self, origin: "CudaEvent") -> float:
        milliseconds: float = origin.event.elapsed_time(self.event)
        return milliseconds / 1e3


class CudaStream:
    """A CUDA stream; ``stream`` None is whichever is current where work is enqueued."""

    def __init__(
        self, device: torch.device, stream: torch.cuda.Stream | None = None, *, is_timed: bool = False
    ) -> None:
        self._device = device
        self._stream = stream
        self._is_timed = is_timed

    def run(self, work: _Work) -> None:
        with torch.cuda.stream(self._target()):
            work()

    def record(self) -> CudaEvent:
        return CudaEvent(self._target(), is_timed=self._is_timed)

    def wait(self, event: CudaEvent) -> None:
        self._target().wait_event(event.event)

    def close(self) -> None:
        self._target().synchronize()

    def _target(self) -> torch.cuda.Stream:
        return self._stream or torch.cuda.current_stream(self._device)
