"""Who makes the videos of a service."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ....engine import Engine
from ....jobs.folder import JobFolder
from ....jobs.job import Job
from ....request.config import Request
from .notes import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The model of a service.

    Attributes:
        name: "demo", a Hub id, a folder's or a file's name.
        model_hash: source hash of the transformer.
        device: where it computes.
        precision: of its weights.
        sizes: (height, width) that it was trained on.
        loras: names of those that are loaded.
    """

    name: str
    model_hash: str
    device: str
    precision: str
    sizes: tuple[tuple[int, int], ...]
    loras: tuple[str, ...]


class Workers(Protocol):
    """Makes jobs of requests; every method may be called from any thread."""

    @property
    def card(self) -> ModelCard:
        """Name, device and sizes of the model that makes the videos."""

    def submit(self, folder: Path, request: Request, asked: Asked) -> Job:
        """Start a job in a new ``folder``.

        Raises:
            IsoframeError: the request is refused; nothing is left in ``folder``.
        """

    def resume(self, folder: JobFolder, asked: Asked) -> Job:
        """Go on with the job of ``folder``.

        Raises:
            IsoframeError: this is not possible.
        """

    def close(self) -> None:
        """Stop what runs; it can be resumed."""


class LocalWorkers:
    """One engine in this process."""

    def __init__(self, engine: Engine) -> None:
        """``engine`` is closed with the workers; its own queue must not be shorter than the service's."""
        self._engine = engine
        self.card = describe_model(engine)

    def submit(self, folder: Path, request: Request, asked: Asked) -> Job:
        """See :class:`Workers`."""
        return self._engine.submit(
            request, job_dir=folder, priority=asked.priority, has_previews=asked.has_previews
        )

    def resume(self, folder: JobFolder, asked: Asked) -> Job:
        """See :class:`Workers`."""
        return self.submit(folder.path, folder.record.request, asked)

    def close(self) -> None:
        """See :class:`Workers`."""
        self._engine.close()


def describe_model(engine: Engine) -> ModelCard:
    """What a service tells of the model of ``engine``."""
    return ModelCard(
        name=engine.components.name,
        model_hash=engine.model_hash,
        device=str(engine.device),
        precision=engine.precision,
        sizes=tuple(engine.components.profile.buckets),
        loras=engine.loras,
    )
