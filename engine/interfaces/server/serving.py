"""What ``serve``, ``mcp`` and ``app`` share: an engine, and the videos that it makes for others."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from .videos.engine_source import EngineSource
from .videos.limits import Limits

if TYPE_CHECKING:
    from ...engine import Engine
    from .videos.service import VideoService
    from .videos.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What to serve.

    Attributes:
        source: the engine, with the LoRAs that requests may name.
        data: folder of the videos.
        max_queue: videos that may wait.
        num_threads: that compute on the CPU; None takes as many as every other door: they decide the bits.
        limits: of one request.
        ray_address: of a cluster that makes the videos; None makes them in this process.
        num_actors: of the cluster; None is one for every GPU.
    """

    source: EngineSource
    data: Path
    max_queue: int = 16
    num_threads: int | None = None
    limits: Limits = field(default_factory=Limits)
    ray_address: str | None = None
    num_actors: int | None = None

    def __post_init__(self) -> None:
        for option, value in (
            ("--max-queue", self.max_queue),
            ("--threads", self.num_threads),
            ("--ray-actors", self.num_actors),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{option} must be at least 1, got {value}")
        if self.num_threads is not None and self.ray_address is not None:
            raise ConfigError(
                f"--threads must not be given with --ray, whose actors have their own, got {self.num_threads}; leave it out"
            )

    def open(self, workers: "Workers | None" = None) -> "VideoService":
        """Go on with the videos that an earlier service left; None for ``workers`` loads the model."""
        from .videos.service import VideoService
        from .videos.workers import LocalWorkers

        if workers is None and self.ray_address is not None:
            workers = _ray_workers(self.ray_address, self.source, self.num_actors)
        workers = workers or LocalWorkers(self.load())
        return VideoService(workers, self.data, max_queued=self.max_queue, limits=self.limits)

    def load(self) -> "Engine":
        """The engine."""
        if self.num_threads is not None:
            import torch

            torch.set_num_threads(self.num_threads)
        return self.source.load()


def _ray_workers(address: str, source: EngineSource, num_actors: int | None) -> "Workers":
    if address == "local":
        from .videos.local_cluster import keep_clusters_local

        keep_clusters_local()
    try:
        from .videos.ray_workers import RayWorkers
    except ImportError as error:
        raise ConfigError(f"--ray needs {error.name}; pip install 'isoframe[ray]'") from error
    return RayWorkers(address, source, num_actors)
