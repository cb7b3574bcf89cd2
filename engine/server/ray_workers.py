"""Workers on a Ray cluster: one actor for every GPU. All nodes must see the service's folder under the same path."""

import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from ..config import Request
from ..errors import DeviceError, IsoframeError, JobCancelledError
from ..events import (
    CancelledEvent,
    DoneEvent,
    Event,
    FailureEvent,
    PartialEvent,
    QueuedEvent,
    StartedEvent,
)
from ..job import Job
from ..job_folder import JobFolder
from ..job_queue import JobQueue
from ..video import Video
from .engine_source import EngineSource
from .notes import Asked
from .workers import ModelCard, describe_model

_logger = logging.getLogger(__name__)
_UNBOUNDED = 10**6
# What goes wrong in an actor comes as an event or an exception.
_QUIET = {"configure_logging": False, "log_to_driver": False}
# Calls of one actor at a time: a job, its cancelling, and requests that are checked meanwhile.
_NUM_CALLS = 8
# Actors that one job may lose before it counts as the cause.
_MAX_LOSSES = 3
# The job here has its own, and tells of its end itself.
_ENDS = (QueuedEvent, StartedEvent, DoneEvent, CancelledEvent)
_CHECKOUT = Path(__file__).resolve().parents[2]


class WorkerError(IsoframeError):
    """A job failed in an actor; the message begins with the name of the exception's class."""


class VideoActor:
    """One engine in a process of Ray."""

    def __init__(self, source: EngineSource) -> None:
        """Load the engine."""
        # Ray has its processes import from the folder in which the server was started. If that is a checkout, its kernels
        # would pass for the package of this name that transformers asks for.
        sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != _CHECKOUT]
        self._engine = source.load()
        self._jobs: dict[str, Job] = {}

    def describe(self) -> ModelCard:
        """The model."""
        return describe_model(self._engine)

    def prepare(self, folder: str, request: Request) -> None:
        """Check a request and keep it in ``folder``."""
        self._engine.prepare(request, job_dir=folder)

    def render(self, folder: str, has_previews: bool) -> Iterator[Event | Video]:
        """Go on with the job in ``folder``: what happens, at last the video."""
        request = JobFolder.open(folder).record.request
        job = self._engine.submit(request, job_dir=folder, has_previews=has_previews)
        self._jobs[folder] = job
        for entry in job.events():
            if not isinstance(entry.event, _ENDS):
                yield entry.event
        del self._jobs[folder]
        if job.state == "done":
            yield job.result()

    def cancel(self, folder: str) -> None:
        """Stop the job after the step at hand."""
        job = self._jobs.get(folder)
        if job is not None:
            job.cancel()


class RayWorkers:
    """See :class:`~.workers.Workers`. The job whose actor is lost goes on in another one from its last section."""

    def __init__(self, address: str, source: EngineSource, num_actors: int | None = None) -> None:
        """Start the actors.

        Args:
            address: of the cluster, "auto" for the one of this machine; "local" starts one for this process.
            source: loaded by every actor.
            num_actors: None is one for every GPU of the cluster, or a single one where there is none.

        Raises:
            DeviceError: the cluster cannot be reached.
        """
        try:
            if address == "local":
                ray.init(address="local", include_dashboard=False, **_QUIET)
            else:
                ray.init(address=address, **_QUIET)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise DeviceError(f"the Ray cluster {address} cannot be reached: {error}") from error
        num_gpus = 0 if source.config.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        num_actors = num_actors or max(num_gpus, 1)
        needs = {"num_gpus": 1} if num_gpus else {"num_cpus": 1}
        self._actor_class = ray.remote(VideoActor).options(max_concurrency=_NUM_CALLS, **needs)
        self._source = source
        self._actors = [self._actor_class.remote(source) for _ in range(num_actors)]
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for actor in self._actors:
            self._free.put(actor)
        self._lock = threading.Lock()
        self._queue = JobQueue(_UNBOUNDED, num_threads=num_actors)
        self.card: ModelCard = self._ask(lambda actor: actor.describe.remote())

    def submit(self, folder: Path, request: Request, asked: Asked) -> Job:
        """See :class:`~.workers.Workers`."""
        self._ask(lambda actor: actor.prepare.remote(str(folder), request))
        return self.resume(folder, asked)

    def resume(self, folder: Path, asked: Asked) -> Job:
        """See :class:`~.workers.Workers`."""
        fps = JobFolder.open(folder).record.request.fps
        job = Job(
            folder,
            fps=fps,
            priority=asked.priority,
            render=lambda on_event: self._render(folder, asked.has_previews, on_event),
        )
        self._queue.put(job)
        return job

    def close(self) -> None:
        """See :class:`~.workers.Workers`."""
        self._queue.close()
        ray.shutdown()

    def _render(self, folder: Path, has_previews: bool, on_event: Callable[[Event], None]) -> Video:
        for _ in range(_MAX_LOSSES):
            actor = self._free.get()
            try:
                return _follow(actor, folder, has_previews, on_event)
            except RayActorError as error:
                _logger.warning("an actor was lost, %s goes on in another one: %s", folder.name, error)
                actor = self._replace(actor)
            finally:
                self._free.put(actor)
        raise WorkerError(
            f"{_MAX_LOSSES} actors were lost while they worked on this job; it is not tried again"
        )

    def _ask(self, call: Callable[[Any], Any]) -> Any:
        """The answer of the first actor that lives."""
        with self._lock:
            actors = list(self._actors)
        lost: RayActorError | None = None
        for actor in actors:
            try:
                return ray.get(call(actor))
            except RayActorError as error:
                lost = error
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, IsoframeError | OSError) else error from error
        raise DeviceError(f"no actor of the Ray cluster answers: {lost}") from lost

    def _replace(self, lost: Any) -> Any:
        with self._lock:
            new = self._actor_class.remote(self._source)
            self._actors = [new if actor is lost else actor for actor in self._actors]
        return new


def _follow(actor: Any, folder: Path, has_previews: bool, on_event: Callable[[Event], None]) -> Video:
    """Have ``actor`` go on with a job, and pass on what happens."""
    cancelled: JobCancelledError | None = None
    events = actor.render.options(num_returns="streaming").remote(str(folder), has_previews)
    for reference in events:
        event = ray.get(reference)
        if isinstance(event, Video):
            return event
        if isinstance(event, FailureEvent):
            raise WorkerError(f"{event.error}: {event.message}")
        try:
            if cancelled is None or isinstance(event, PartialEvent):
                on_event(event)
        except JobCancelledError as error:
            cancelled = error
            actor.cancel.remote(str(folder))
    raise cancelled or JobCancelledError(f"job {folder} was cancelled in its actor")
