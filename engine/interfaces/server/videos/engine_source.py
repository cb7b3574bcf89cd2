"""How the engine of a service is loaded: in this process, or in another one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ....request.config import EngineConfig

if TYPE_CHECKING:
    from ....engine import Engine

# A service has a bound of its own, which does not hold for jobs that it resumes.
_UNBOUNDED = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSource:
    """What to load.

    Attributes:
        model: "demo", a Hub id, a folder or a file.
        config: what the engine may use.
        components: other sources of companion models, by name.
        loras: files that requests may name.
    """

    model: str
    config: EngineConfig
    components: Mapping[str, str] = field(default_factory=dict)
    loras: tuple[str, ...] = ()

    def load(self) -> "Engine":
        """An engine whose queue takes whatever the service gives it."""
        from ....engine import Engine

        config = replace(self.config, max_queued_jobs=_UNBOUNDED)
        engine = Engine.load(self.model, config=config, components=self.components)
        for path in self.loras:
            engine.load_lora(path)
        return engine
