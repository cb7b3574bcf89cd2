"""Magnitude ratios of a checkpoint: the growth of the block stack's residual from step to step."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from ...engine import Engine, Request, SamplingConfig
from ...engine.families.transformer_base import StepPass
from ...engine.sampling.magnitude import SkipSchedule
from ...engine.sampling.step_cache import StepCacheFactory, hidden_and_residual


class MagnitudeProbe:
    """A step cache that computes every step and notes ``mean(|r_t| / |r_{t-1}|)`` over the noisy tokens.

    Attributes:
        ratios: of the steps so far; the first step's is 1.
    """

    was_computed = True

    def __init__(self, num_steps: int) -> None:
        self.schedule: SkipSchedule | None = (False,) * num_steps
        self.ratios: list[float] = []
        self._previous_norms: Tensor | None = None

    def velocity(self, step: int, step_pass: StepPass) -> Tensor:
        hidden, residual = hidden_and_residual(step_pass)
        norms = residual.float().norm(dim=-1)
        previous, self._previous_norms = self._previous_norms, norms
        self.ratios.append(1.0 if previous is None else float((norms / previous).mean()))
        return step_pass.head(hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class MagnitudeResult:
    """Ratios of one order.

    Attributes:
        order: "inverted" or "forward".
        ratios: means over all sections.
        spread: largest distance of a section's ratio from the mean, over the steps after the first fifth.
        num_sections: sections measured.
    """

    order: str
    ratios: tuple[float, ...]
    spread: float
    num_sections: int


def recording(probes: list[MagnitudeProbe]) -> StepCacheFactory:
    """Has an engine that is loaded with it note its sections' ratios in ``probes``."""

    def make_probe(sampling: SamplingConfig) -> MagnitudeProbe:
        probes.append(MagnitudeProbe(sampling.num_steps))
        return probes[-1]

    return make_probe


def measure_magnitudes(
    engine: Engine, probes: list[MagnitudeProbe], requests: Sequence[Request]
) -> MagnitudeResult:
    """Generate the videos of ``requests``, which share steps and order, and average the ratios of their sections.

    Residuals are taken over the noisy tokens, the only ones that a skipped step needs.

    Args:
        engine: loaded with ``recording(probes)`` as its step caches.
        probes: those of earlier measurements go.
        requests: the videos.
    """
    probes.clear()
    for request in requests:
        for _ in engine.generate(request):
            pass
    # Those made for a check alone saw no step.
    measured = [probe.ratios for probe in probes if probe.ratios]
    means = tuple(round(fmean(column), 5) for column in zip(*measured, strict=True))
    settled = range(max(len(means) // 5, 1), len(means))
    spread = max((abs(ratios[step] - means[step]) for ratios in measured for step in settled), default=0.0)
    return MagnitudeResult(order=requests[0].order, ratios=means, spread=spread, num_sections=len(measured))
