"""What a step cache does to a video, measured on its first section."""

from contextlib import closing
from dataclasses import dataclass, replace

from ..errors import ConfigError
from ..events import Event, StepEvent
from ..request.config import Request
from ..request.sampling_config import STEP_CACHES
from .generation import generate_sections, ignore
from .loaded_model import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCacheError:
    """What a step cache did to one section.

    Attributes:
        num_computed: steps that ran the transformer.
        num_skipped: the others.
        relative_error: norm of the latents' change over the norm of the latents without a cache.
    """

    num_computed: int
    num_skipped: int
    relative_error: float

    def __str__(self) -> str:
        return (
            f"step cache, first section: {self.num_computed} steps computed, {self.num_skipped} skipped, latents differ by "
            f"{100 * self.relative_error:.2g} % of their norm from those without it"
        )


def measure_step_cache(request: Request, model: LoadedModel) -> StepCacheError:
    """Make the first section with the step cache of ``request`` and without it.

    Raises:
        ConfigError: the request has no step cache.
    """
    if request.step_cache == "none":
        raise ConfigError(f"step_cache must be {' or '.join(STEP_CACHES[1:])} to have an error, got 'none'")
    computed: list[bool] = []

    def count(event: Event) -> None:
        if isinstance(event, StepEvent):
            computed.append(event.is_computed)

    with closing(generate_sections(request, model, count)) as sections:
        cached = next(sections).latents
    with closing(generate_sections(replace(request, step_cache="none"), model, ignore)) as sections:
        exact = next(sections).latents
    return StepCacheError(
        num_computed=sum(computed),
        num_skipped=len(computed) - sum(computed),
        relative_error=float((cached - exact).norm() / exact.norm()),
    )
