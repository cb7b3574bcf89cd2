"""Samplers in straight-line code, written from the published formulas and nothing else.

A model is a callable ``denoise(x, i)``: the clean sample it predicts from x at sigmas[i]. Latents are fp32;
``dtype`` is the type of the coefficients, which are 0-d tensors computed one operation at a time.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, int], Tensor]


def schedule(num_steps: int, num_tokens: int, *, shift: float | None = None) -> Tensor:
    """Noise levels fp32 [num_steps + 1], from 1 to 0."""
    slope = (1.15 - 0.5) / (4096 - 256)
    mu = min(slope * num_tokens + (0.5 - slope * 256), math.log(7.0)) if shift is None else math.log(shift)
    s = torch.linspace(1, 0, num_steps + 1, dtype=torch.float32)
    return math.exp(mu) / (math.exp(mu) + (1 / s - 1))


def sample_euler(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Follow the velocity from sigma to sigma; the last step ends at sigma 0."""
    for i in range(len(sigmas) - 1):
        velocity = (x - denoise(x, i)) / sigmas[i]
        x = x + (sigmas[i + 1] - sigmas[i]) * velocity
    return x


def sample_unipc(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, variant: str = "bh1", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Multistep UniPC over x0 predictions; one call of ``denoise`` for each i, the last of which is returned.

    As published, lambda is taken of each sigma, and h and r are differences of lambdas: in fp32 that is another number
    than the logarithm of a quotient of sigmas.
    """
    levels = sigmas.to(dtype)
    num_steps = len(levels) - 1
    max_order = min(3, num_steps - 1)
    old_lambdas, old_predictions = [-torch.log(levels[0])], [denoise(x, 0)]
    for i in range(1, num_steps):
        order = min(i, max_order)
        lambda_s, lambda_t = old_lambdas[-1], -torch.log(levels[i])
        last = old_predictions[-1]
        h = lambda_t - lambda_s
        z = -h
        phi = torch.expm1(z)
        base = (levels[i] / levels[i - 1]) * x - phi * last

        r: list[Tensor] = []
        D: list[Tensor] = []
        for j in range(1, order):
            r.append((old_lambdas[-1 - j] - lambda_s) / h)
            D.append((old_predictions[-1 - j] - last) / r[-1])
        r.append(torch.ones_like(h))

        B = z if variant == "bh1" else phi
        g = phi / z - 1
        rows, b = [], []
        for k in range(1, order + 1):
            rows.append(torch.stack([value ** (k - 1) for value in r]))
            b.append(g * math.factorial(k) / B)
            g = g / z - 1 / math.factorial(k + 1)
        R, b_vector = torch.stack(rows), torch.stack(b)

        half = torch.full_like(b_vector[:1], 0.5)
        predictor = half if order == 2 else torch.linalg.solve(R[:2, :2], b_vector[:2])
        corrector = half if order == 1 else torch.linalg.solve(R, b_vector)

        change = torch.zeros_like(x)
        for rho, difference in zip(predictor, D, strict=False):
            change = change + rho * difference
        new = denoise(base - B * change, i)
        change = torch.zeros_like(x)
        for rho, difference in zip(corrector, [*D, new - last], strict=True):
            change = change + rho * difference
        x = base - B * change

        old_lambdas = [*old_lambdas, lambda_t][-3:]
        old_predictions = [*old_predictions, new][-3:]
    return old_predictions[-1]
