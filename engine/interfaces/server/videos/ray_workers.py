"""Workers on a Ray cluster: one actor for every GPU. All nodes must see the service's folder under the same path."""

import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ....errors import ConfigError, DeviceError, IsoframeError, JobCancelledError
from ....events import CancelledEvent, DoneEvent, Event, FailureEvent, PartialEvent, QueuedEvent, StartedEvent
from ....jobs.folder import JobFolder
from ....jobs.job import Job
from ....jobs.queue import JobQueue
from ....jobs.state import JobState
from ....media.video import Video
from ....request.config import Request
from .engine_source import EngineSource
from .notes import Asked
from .workers import ModelCard, describe_model

_logger = logging.getLogger(__name__)
_UNBOUNDED = 10**6
# What goes wrong in an actor comes as an event or an exception.
_QUIET = {"configure_logging": False, "log_to_driver": False}
# Calls of one actor at a time: a job, its cancelling, and requests that are checked meanwhile.
_NUM_CALLS = 8
# Actors that may fail one job before it is given up.
_MAX_LOSSES = 3
# The job here has its own, and tells of its end itself.
_ENDS = (QueuedEvent, StartedEvent, DoneEvent, CancelledEvent, FailureEvent)
# How often a job that waits for an actor looks whether it was cancelled.
_POLL_SECONDS = 0.2
# Longest wait for one that takes the place of the last.
_START_SECONDS = 60.0
# The folder above the first name of this module: a checkout, or the installed package.
_CHECKOUT = Path(__file__).resolve().parents[__name__.count(".") - 1]


class LostJobError(IsoframeError):
    """A job lost one actor after the other, or found none that could load its engine."""


class ActorError(RuntimeError):
    """Something in an actor failed that should not have; what it said is in the log, with this one's cause."""


class VideoActor:
    """One engine in a process of Ray."""

    def __init__(self, source: EngineSource) -> None:
        """Load the engine; :meth:`describe` tells why that failed."""
        # Ray has its processes import from the folder in which the server was started. If that is a checkout, its kernels
        # would pass for the package of this name that transformers asks for.
        sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != _CHECKOUT]
        self._jobs: dict[str, Job] = {}
        self._failure: IsoframeError | None = None
        try:
            self._engine = source.load()
        except IsoframeError as error:
            # Raised here it would come as a long text.
            self._failure = error

    def describe(self) -> ModelCard:
        """The model.

        Raises:
            IsoframeError: it could not be loaded.
        """
        if self._failure is not None:
            raise self._failure
        return describe_model(self._engine)

    def prepare(self, folder: str, request: Request) -> None:
        """Check a request and keep it in ``folder``."""
        self._engine.prepare(request, job_dir=folder)

    def render(self, folder: str, has_previews: bool) -> Iterator[Event | Video]:
        """Go on with the job in ``folder``: what happens, at last the video; raises what the job fails with."""
        request = JobFolder.open(folder).record.request
        job = self._engine.submit(request, job_dir=folder, has_previews=has_previews)
        self._jobs[folder] = job
        for entry in job.events():
            if not isinstance(entry.event, _ENDS):
                yield entry.event
        del self._jobs[folder]
        if job.state is not JobState.CANCELLED:
            yield job.result()

    def cancel(self, folder: str) -> None:
        """Stop the job after the step at hand."""
        job = self._jobs.get(folder)
        if job is not None:
            job.cancel()


class RayWorkers:
    """Makes videos with actors on a Ray cluster; a job whose actor is lost goes on in another, from its last section."""

    def __init__(self, address: str, source: EngineSource, num_actors: int | None = None) -> None:
        """Start the actors; return when one of them is there.

        Args:
            address: of the cluster, "auto" for the one of this machine; "local" starts one for this process.
            source: loaded by every actor.
            num_actors: None is one for every GPU of the cluster, or a single one where there is none.

        Raises:
            DeviceError: the cluster cannot be reached.
            ConfigError: the cluster has room for fewer actors.
            IsoframeError: no actor could load the engine.
        """
        _connect(address)
        try:
            num_actors, needs = share_cluster(ray.cluster_resources(), source.config.device, num_actors)
            self._actor_class = ray.remote(VideoActor).options(max_concurrency=_NUM_CALLS, **needs)
            self._source = source
            self._num_actors = num_actors
            self._lock = threading.Lock()
            self._is_started = threading.Condition(self._lock)
            # All, and those of them whose engine is loaded; of these, those without a job are free.
            self._actors: list[Any] = []
            self._loaded: list[Any] = []
            self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self._queue = JobQueue(_UNBOUNDED, num_threads=num_actors)
            self.card = _first_answer([self._start() for _ in range(num_actors)])
        except BaseException:
            ray.shutdown()
            raise

    def submit(self, folder: Path, request: Request, asked: Asked) -> Job:
        """See :class:`~.workers.Workers`."""
        self._ask(lambda actor: actor.prepare.remote(str(folder), request))
        return self.resume(JobFolder.open(folder), asked)

    def resume(self, folder: JobFolder, asked: Asked) -> Job:
        """See :class:`~.workers.Workers`."""
        job = Job(
            folder,
            priority=asked.priority,
            render=lambda on_event: self._render(job, asked.has_previews, on_event),
        )
        self._queue.put(job)
        return job

    def close(self) -> None:
        """See :class:`~.workers.Workers`."""
        self._queue.close()
        ray.shutdown()

    def _render(self, job: Job, has_previews: bool, on_event: Callable[[Event], None]) -> Video:
        num_unloaded = 0
        for _ in range(_MAX_LOSSES):
            actor, is_loaded = self._take(job)
            if not is_loaded:
                num_unloaded += 1
                self._replace(actor)
                continue
            try:
                video = _follow(actor, job.path, has_previews, on_event)
            except RayActorError as error:
                _logger.warning("an actor was lost, %s goes on in another one: %s", job.path.name, error)
                self._replace(actor)
                continue
            except BaseException:
                self._free.put(actor)
                raise
            self._free.put(actor)
            return video
        causes = "were lost while they worked on it"
        if num_unloaded:
            causes = f"failed, {num_unloaded} of them to load their engine; the log of the server says why"
        raise LostJobError(f"this job is not tried again: {_MAX_LOSSES} actors {causes}")

    def _take(self, job: Job) -> tuple[Any, bool]:
        """An actor without a job, once there is one, and whether its engine is loaded."""
        while not job.is_cancelled:
            try:
                actor = self._free.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            with self._lock:
                # Somebody else may have found it lost, and has replaced it.
                if actor in self._actors:
                    return actor, actor in self._loaded
        raise JobCancelledError(f"job {job.path} was cancelled before an actor was free")

    def _ask(self, call: Callable[[Any], Any]) -> Any:
        """What an actor answers; those that are found to be lost are replaced."""
        lost: RayActorError | None = None
        for _ in range(self._num_actors + 1):
            actor = self._any()
            try:
                return _answer(call(actor))
            except RayActorError as error:
                lost = error
                self._replace(actor)
        raise DeviceError("no actor of the Ray cluster answers; the log of the cluster says why") from lost

    def _any(self) -> Any:
        """An actor, which answers when its engine is loaded; waits while the last one is being replaced."""
        with self._is_started:
            self._is_started.wait_for(lambda: self._actors, timeout=_START_SECONDS)
            actors = self._loaded or self._actors
        if not actors:
            raise DeviceError("no actor of the Ray cluster is there; the log of the cluster says why")
        return actors[0]

    def _start(self) -> Any:
        """Start another actor, which takes jobs when its engine is loaded; a reference to its card."""
        actor = self._actor_class.remote(self._source)
        with self._is_started:
            self._actors.append(actor)
            self._is_started.notify_all()
        card = actor.describe.remote()
        card.future().add_done_callback(lambda answer: self._on_start(actor, answer.exception()))
        return card

    def _on_start(self, actor: Any, error: BaseException | None) -> None:
        if error is None:
            with self._lock:
                self._loaded.append(actor)
        else:
            # Not killed here: a thread of Ray calls this, and would wait for itself.
            cause = getattr(error, "cause", error)
            is_expected = isinstance(cause, IsoframeError)
            _logger.error(
                "an actor could not load its engine: %s", cause, exc_info=None if is_expected else error
            )
        # One that failed too: the job that takes it has it replaced.
        self._free.put(actor)

    def _replace(self, lost: Any) -> None:
        with self._lock:
            is_known = lost in self._actors
            self._actors = [actor for actor in self._actors if actor is not lost]
            self._loaded = [actor for actor in self._loaded if actor is not lost]
        if is_known:
            # It may be out of reach alone, and would go on with what others take up.
            ray.kill(lost)
            self._start()


def share_cluster(
    resources: Mapping[str, float], device: str, num_actors: int | None
) -> tuple[int, dict[str, int]]:
    """How many actors there are, and what Ray is to reserve for each.

    Args:
        resources: of the cluster: "GPU", "CPU".
        device: of every engine; "cpu" asks for no GPU.
        num_actors: None is one for every GPU, or a single one where there is none.

    Raises:
        ConfigError: the cluster has fewer GPUs, or cores where there are none: Ray would keep actors waiting for ever.
    """
    num_gpus = 0 if device == "cpu" else int(resources.get("GPU", 0))
    num_actors = num_actors or max(num_gpus, 1)
    most = num_gpus or int(resources.get("CPU", 0))
    if num_actors > most:
        what = "GPUs" if num_gpus else "CPU cores"
        raise ConfigError(
            f"num_actors (--ray-actors) must be at most {most}, the number of {what} of the Ray cluster, got "
            f"{num_actors}; start fewer, or add nodes first"
        )
    return num_actors, {"num_gpus": 1} if num_gpus else {"num_cpus": 1}


def _connect(address: str) -> None:
    try:
        if address == "local":
            ray.init(address="local", include_dashboard=False, **_QUIET)
        else:
            ray.init(address=address, **_QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DeviceError(f"the Ray cluster {address} cannot be reached: {error}") from error


def _first_answer(references: list[Any]) -> Any:
    """The first answer of several actors that would all answer the same; one that fails counts only if all fail."""
    while True:
        answered, references = ray.wait(references, num_returns=1)
        try:
            return _answer(answered[0])
        except (IsoframeError, OSError, ActorError):
            if not references:
                raise
        except RayActorError as error:
            if not references:
                raise DeviceError("no actor of the Ray cluster stays alive; its log says why") from error


def _answer(reference: Any) -> Any:
    """What an actor answers; what it raises as this process would, without the actor's traceback in the text."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, IsoframeError | OSError):
            raise error.cause from error
        name = type(getattr(error, "cause", error)).__name__
        raise ActorError(f"an actor failed ({name}); its log says more") from error


def _follow(actor: Any, folder: Path, has_previews: bool, on_event: Callable[[Event], None]) -> Video:
    """Have ``actor`` go on with a job, and pass on what happens; returns and raises when the actor is through with it."""
    stopped: Exception | None = None
    events = actor.render.options(num_returns="streaming").remote(str(folder), has_previews)
    for reference in events:
        event = _answer(reference)
        if isinstance(event, Video):
            if stopped is None or isinstance(stopped, JobCancelledError):
                return event
            break
        try:
            if stopped is None or isinstance(event, PartialEvent):
                on_event(event)
        except Exception as error:
            # Raised below, once the actor has stopped: until then it works in the folder of the job.
            stopped = stopped or error
            actor.cancel.remote(str(folder))
    raise stopped or JobCancelledError(f"job {folder} was cancelled in its actor")
