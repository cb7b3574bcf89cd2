"""Step caches: decide whether a step runs the transformer's blocks or reuses an earlier result."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...kernels import step_change
from ..families.transformer_base import StepPass
from ..request.config import SamplingConfig
from .magnitude import SkipSchedule, skip_schedule

# Published polynomial from the relative change of the first modulated input to the expected change of the output,
# highest power first (TeaCache for HunyuanVideo).
_CHANGE_POLYNOMIAL = (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896)


class StepCache(Protocol):
    """State of one branch in one section.

    Attributes:
        was_computed: whether the last step ran the blocks.
        schedule: which steps will be skipped; None where that depends on what is computed.
    """

    was_computed: bool
    schedule: SkipSchedule | None

    def velocity(self, step: int, step_pass: StepPass) -> Tensor:
        """Velocity of ``step``, computed or derived from an earlier step."""
        ...


# A fresh cache for one branch of one section.
StepCacheFactory = Callable[[SamplingConfig], StepCache]


def make_step_cache(config: SamplingConfig, ratios: Sequence[float] | None = None) -> StepCache:
    """A fresh cache for one branch of one section; MagCache needs the magnitude ``ratios`` of the checkpoint."""
    if config.step_cache == "teacache":
        return TeaCache(config.num_steps, config.step_cache_threshold)
    if config.step_cache == "magcache":
        if ratios is None:
            raise ValueError("step_cache 'magcache' needs the magnitude ratios of the checkpoint, got None")
        return MagCache(skip_schedule(ratios, config))
    assert config.step_cache == "none", "a configuration knows the caches that there are"
    return NoStepCache(config.num_steps)


def hidden_and_residual(step_pass: StepPass) -> tuple[Tensor, Tensor]:
    """Run the blocks; the noisy tokens after them, and what the blocks added to them.

    Only the noisy rows reach the output, so only theirs are kept.
    """
    before = step_pass.noisy_tokens.clone()
    hidden = step_pass.hidden()
    return hidden, torch.sub(hidden, before, out=before)


class NoStepCache:
    """Computes every step."""

    was_computed = True

    def __init__(self, num_steps: int) -> None:
        self.schedule: SkipSchedule | None = (False,) * num_steps

    def velocity(self, step: int, step_pass: StepPass) -> Tensor:
        return step_pass.compute()


class MagCache:
    """Reuses the residual of the block stack at the steps of a schedule that is fixed before the first one.

    A skipped step touches nothing but the noisy tokens.
    """

    def __init__(self, schedule: SkipSchedule) -> None:
        assert not schedule[0], "the first step computes"
        self.was_computed = True
        self.schedule: SkipSchedule | None = schedule
        # A residual is kept only where the next step reuses it.
        self._is_reused = (*schedule[1:], False)
        self._residual: Tensor | None = None

    def velocity(self, step: int, step_pass: StepPass) -> Tensor:
        assert self.schedule is not None
        self.was_computed = not self.schedule[step]
        if not self.was_computed:
            assert self._residual is not None, "a computed step comes first"
            return step_pass.reuse(self._residual)
        self._residual = None
        if not self._is_reused[step]:
            return step_pass.compute()
        hidden, self._residual = hidden_and_residual(step_pass)
        return step_pass.head(hidden)


class TeaCache:
    """Reuses the residual of the block stack while the first modulated input changes little.

    First and last step always compute. Otherwise ``|m - m_prev| / |m_prev|`` of consecutive steps goes through
    the polynomial and accumulates; the step computes once the sum reaches the threshold, and the sum restarts.
    """

    def __init__(self, num_steps: int, threshold: float) -> None:
        self.was_computed = True
        self.schedule: SkipSchedule | None = None
        self._num_steps = num_steps
        self._threshold = threshold
        self._accumulated = 0.0
        self._previous_input: Tensor | None = None
        self._residual: Tensor | None = None

    def velocity(self, step: int, step_pass: StepPass) -> Tensor:
        self.was_computed = self._must_compute(step, step_pass.first_input)
        if not self.was_computed:
            assert self._residual is not None, "the first step computes"
            return step_pass.reuse(self._residual)
        self._residual = None
        hidden, self._residual = hidden_and_residual(step_pass)
        return step_pass.head(hidden)

    def _must_compute(self, step: int, first_input: Tensor) -> bool:
        previous, self._previous_input = self._previous_input, first_input
        if previous is None or step in (0, self._num_steps - 1):
            self._accumulated = 0.0
            return True
        self._accumulated += _polynomial(step_change(first_input, previous).item())
        if self._accumulated < self._threshold:
            return False
        self._accumulated = 0.0
        return True


def _polynomial(x: float) -> float:
    value = 0.0
    for coefficient in _CHANGE_POLYNOMIAL:
        value = value * x + coefficient
    return value
