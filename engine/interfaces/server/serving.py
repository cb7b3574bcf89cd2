"""What ``serve``, ``mcp`` and ``app`` share: an engine, and the videos that it makes for others."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...request.config import EngineConfig

if TYPE_CHECKING:
    from ...engine import Engine
    from .videos.service import VideoService
    from .videos.workers import EngineSource, Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What to serve.

    Attributes:
        model: "demo", a Hub id, a folder or a file.
        config: what the engine may use.
        components: other sources of companion models, by name.
        data: folder of the videos.
        max_queue: videos that may wait.
        loras: files that requests may name.
        num_threads: that compute on the CPU; None leaves one core to the server.
        upload_bytes: of an image.
        max_seconds: of a video.
        max_steps: of a section.
        ray_address: of a cluster that makes the videos; None makes them in this process.
        num_actors: of the cluster; None is one for every GPU.
    """

    model: str
    config: EngineConfig
    components: Mapping[str, str] = field(default_factory=dict)
    data: Path
    max_queue: int = 16
    loras: tuple[str, ...] = ()
    num_threads: int | None = None
    upload_bytes: int = 20 * 2**20
    max_seconds: float = 120
    max_steps: int = 100
    ray_address: str | None = None
    num_actors: int | None = None

    def __post_init__(self) -> None:
        if self.max_queue < 1:
            raise ConfigError(f"--max-queue must be at least 1, got {self.max_queue}")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {self.num_threads}")
        if self.num_threads is not None and self.ray_address is not None:
            raise ConfigError(
                f"--threads must not be given with --ray, whose actors have their own, got {self.num_threads}; leave it out"
            )
        if self.num_actors is not None and self.num_actors < 1:
            raise ConfigError(f"--ray-actors must be at least 1, got {self.num_actors}")

    def open(self, workers: "Workers | None" = None) -> "VideoService":
        """Go on with the videos that an earlier service left; None for ``workers`` loads the model."""
        from .videos.limits import Limits
        from .videos.service import VideoService

        limits = Limits(upload_bytes=self.upload_bytes, seconds=self.max_seconds, num_steps=self.max_steps)
        return VideoService(workers or self._workers(), self.data, max_queued=self.max_queue, limits=limits)

    def load(self) -> "Engine":
        """The model, with the LoRAs that requests may name."""
        import torch

        torch.set_num_threads(self.num_threads or max((os.cpu_count() or 2) - 1, 1))
        return self._source().load()

    def _workers(self) -> "Workers":
        from .videos.workers import LocalWorkers

        if self.ray_address is not None:
            return _ray_workers(self.ray_address, self._source(), self.num_actors)
        return LocalWorkers(self.load())

    def _source(self) -> "EngineSource":
        from .videos.workers import EngineSource

        return EngineSource(
            model=self.model, config=self.config, components=self.components, loras=self.loras
        )


def _ray_workers(address: str, source: "EngineSource", num_actors: int | None) -> "Workers":
    if address == "local":
        from .videos.local_cluster import keep_clusters_local

        keep_clusters_local()
    try:
        from .videos.ray_workers import RayWorkers
    except ImportError as error:
        raise ConfigError(f"--ray needs {error.name}; pip install 'isoframe[ray]'") from error
    return RayWorkers(address, source, num_actors)
