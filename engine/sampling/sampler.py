"""Flow-matching samplers: the shifted schedule, UniPC (bh1, bh2) and Euler.

UniPC follows its published formulas (Zhao et al. 2023) with lambda = -ln(sigma) and x0 predictions. Schedule and
coefficients are computed in fp32, elementwise: past 20 steps their cancellation is part of the published result.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..request.config import SAMPLERS, check_choice

# Raised whenever the arithmetic of a sampler changes, and with it the bits of a video.
REVISIONS = {"unipc": 2, "unipc-bh2": 2, "euler": 1}
_MAX_ORDER = 3
# Straight line through (256 tokens, 0.5) and (4096 tokens, 1.15); the shift itself is capped at 7.
_SLOPE = (1.15 - 0.5) / (4096 - 256)
_MU_AT_256 = 0.5
_MAX_SHIFT = 7.0


def sigma_schedule(num_steps: int, num_tokens: int, *, shift: float | None = None) -> Tensor:
    """Noise levels from 1 to 0.

    Args:
        num_steps: model evaluations.
        num_tokens: noisy tokens of a section; more tokens shift the schedule towards noise.
        shift: fixed shift; None derives it from ``num_tokens``.

    Returns:
        ``[num_steps + 1]`` fp32 on the CPU.
    """
    if shift is None:
        mu = min(_SLOPE * (num_tokens - 256) + _MU_AT_256, math.log(_MAX_SHIFT))
    else:
        mu = math.log(shift)
    base = torch.linspace(1, 0, num_steps + 1, dtype=torch.float32)
    return math.exp(mu) / (math.exp(mu) + (1 / base - 1))


class Sampler(Protocol):
    """One section's sampler."""

    def update(self, latents: Tensor, x0: Tensor, step: int) -> Tensor:
        """Next input of the model.

        Args:
            latents: input of evaluation ``step``, fp32.
            x0: its prediction of the clean latents, fp32.
            step: evaluation, from 0; each is passed once and in order.

        Returns:
            The input of evaluation ``step + 1``; after the last one the section's latents.
        """
        ...


def make_sampler(name: str, sigmas: Tensor) -> Sampler:
    """Sampler ``name`` ("unipc", "unipc-bh2" or "euler") for the schedule ``sigmas`` [num_steps + 1]."""
    check_choice("sampler", name, SAMPLERS)
    if name == "euler":
        return Euler(sigmas)
    return UniPC(sigmas, "bh2" if name == "unipc-bh2" else "bh1")


class Euler:
    """``x + (sigma_next - sigma) * v`` with ``v = (x - x0) / sigma``; ends at sigma 0."""

    def __init__(self, sigmas: Tensor) -> None:
        self._sigmas: list[float] = sigmas.tolist()

    def update(self, latents: Tensor, x0: Tensor, step: int) -> Tensor:
        sigma, sigma_next = self._sigmas[step : step + 2]
        return latents + (sigma_next - sigma) * ((latents - x0) / sigma)


@dataclass(frozen=True, slots=True)
class _Coefficients:
    """One UniPC update from the last sigma to the next.

    Attributes:
        keep: factor of the latents.
        step: exp(-h) - 1; the last prediction times this is subtracted.
        scale: B(h).
        ratios: r_j of the older predictions, nearest first.
        predictor: weights of their differences in the prediction.
        corrector: weights in the correction; the last belongs to the new prediction.
    """

    keep: float
    step: float
    scale: float
    ratios: tuple[float, ...]
    predictor: tuple[float, ...]
    corrector: tuple[float, ...]


class UniPC:
    """Multistep predictor-corrector of order 3; returns the last x0, which lies at the last sigma above 0."""

    def __init__(self, sigmas: Tensor, variant: str = "bh1") -> None:
        self._num_steps = sigmas.shape[0] - 1
        max_order = min(_MAX_ORDER, self._num_steps - 1)
        # Order ramps up 1, 2, 3 as predictions become available.
        self._updates = [
            _coefficients(sigmas, i, min(i, max_order), variant) for i in range(1, self._num_steps)
        ]
        self._predictions: list[Tensor] = []
        self._latents: Tensor | None = None

    def update(self, latents: Tensor, x0: Tensor, step: int) -> Tensor:
        if step > 0:
            assert self._latents is not None, "steps run in order from 0"
            latents = self._correct(self._latents, x0, self._updates[step - 1])
        self._predictions = [x0, *self._predictions[: _MAX_ORDER - 1]]
        if step == self._num_steps - 1:
            return x0
        self._latents = latents
        return self._predict(latents, self._updates[step])

    def _predict(self, latents: Tensor, update: _Coefficients) -> Tensor:
        base = update.keep * latents - update.step * self._predictions[0]
        return self._add(base, update.scale, update.predictor, self._differences(update))

    def _correct(self, latents: Tensor, x0: Tensor, update: _Coefficients) -> Tensor:
        base = update.keep * latents - update.step * self._predictions[0]
        differences = [*self._differences(update), x0 - self._predictions[0]]
        return self._add(base, update.scale, update.corrector, differences)

    def _differences(self, update: _Coefficients) -> list[Tensor]:
        last, *older = self._predictions
        return [(x - last) / ratio for x, ratio in zip(older, update.ratios, strict=False)]

    @staticmethod
    def _add(base: Tensor, scale: float, weights: tuple[float, ...], differences: list[Tensor]) -> Tensor:
        if not weights:
            return base
        total = sum(w * difference for w, difference in zip(weights, differences, strict=True))
        return base - scale * total


def _coefficients(sigmas: Tensor, index: int, order: int, variant: str) -> _Coefficients:
    """Update number ``index``, from sigma[index - 1] to sigma[index]."""
    # A difference of two logarithms, not the logarithm of a quotient: what cancels is part of the result.
    lambdas = -torch.log(sigmas[: index + 1])
    last = lambdas[index - 1]
    h = lambdas[index] - last
    z = -h
    phi = torch.expm1(z)
    ratios = [(lambdas[index - 1 - j] - last) / h for j in range(1, order)]
    scale = z if variant == "bh1" else phi
    points = torch.stack([*ratios, torch.ones((), dtype=torch.float32)])
    g = phi / z - 1
    rows, targets = [], []
    for k in range(1, order + 1):
        rows.append(points ** (k - 1))
        targets.append(g * math.factorial(k) / scale)
        g = g / z - 1 / math.factorial(k + 1)
    system, target = torch.stack(rows), torch.stack(targets)
    half = torch.tensor([0.5], dtype=torch.float32)
    # Orders whose system is one equation take its limit 1/2, as published.
    corrector = half if order == 1 else torch.linalg.solve(system, target)
    predictor = {1: half[:0], 2: half}.get(order)
    if predictor is None:
        predictor = torch.linalg.solve(system[:-1, :-1], target[:-1])
    return _Coefficients(
        keep=(sigmas[index] / sigmas[index - 1]).item(),
        step=phi.item(),
        scale=scale.item(),
        ratios=tuple(r.item() for r in ratios),
        predictor=tuple(predictor.tolist()),
        corrector=tuple(corrector.tolist()),
    )
