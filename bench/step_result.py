"""One variant of a model's denoising, and what was measured of it."""

from dataclasses import dataclass

from .rows import Gate
from .step_pace import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is varied; names as in ``EngineConfig`` and ``SamplingConfig``."""

    precision: str
    attention: str
    step_cache: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One variant, measured.

    Attributes:
        variant: what ran.
        pace: how fast.
        gate: the comparison of a small model's step that came before.
        attention: backend that was used.
        error: relative RMS of its latents to those of the first variant; 0 for that one.
        share: of what the card should do; None for a card that is not in the table, and on the CPU.
        roofline: share of the best rate of the card's tensor cores; None as above.
        reasons: why, where the share is low.
    """

    variant: Variant
    pace: Pace
    gate: Gate
    attention: str
    error: float
    share: float | None
    roofline: float | None
    reasons: tuple[str, ...]
