"""Muon for matrices, Adam for the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonalize(matrix: Tensor, *, dtype: torch.dtype = torch.float32, num_iterations: int = 5) -> Tensor:
    """Nearly the nearest orthogonal matrix [M, N], by a quintic Newton-Schulz iteration in ``dtype``."""
    x = (matrix / (matrix.norm() + 1e-7)).to(dtype)
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T
    for _ in range(num_iterations):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * (gram @ gram) - 4.7750 * gram) @ x
    result: Tensor = (x.T if is_tall else x).to(matrix.dtype)
    return result


class MuonAdam(torch.optim.Optimizer):
    """Muon (Nesterov momentum, update matched to Adam's RMS) for ``matrices``, Adam for ``others``.

    Args:
        matrices: parameters of two or more dimensions; flattened to [rows, -1].
        others: any parameters.
        adam_scale: Adam's learning rate relative to Muon's.
        betas: Adam's decay rates.
        momentum: Muon's decay rate.
        weight_decay: decoupled decay of the matrices.
        dtype: arithmetic of the orthogonalization; it tolerates bf16.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        adam_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        groups = [
            {"params": list(matrices), "is_matrix": True, "scale": 1.0},
            {"params": list(others), "is_matrix": False, "scale": adam_scale},
        ]
        defaults = {"lr": 0.0, "betas": betas, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(groups, defaults)
        self._dtype = dtype

    def set_learning_rate(self, learning_rate: float) -> None:
        """Learning rate of the next steps; Adam's is scaled."""
        for group in self.param_groups:
            group["lr"] = learning_rate * group["scale"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no loss
        """Apply one update from the gradients; ``closure`` is not used."""
        for group in self.param_groups:
            update = self._muon if group["is_matrix"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, group)

    def _muon(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        grad = parameter.grad
        assert grad is not None
        state["average"].mul_(group["momentum"]).add_(grad)
        direction = (grad + group["momentum"] * state["average"]).flatten(1)
        direction = orthogonalize(direction, dtype=self._dtype) * (0.2 * max(direction.shape) ** 0.5)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction.view_as(parameter), alpha=-group["lr"])

    def _adam(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(average=torch.zeros_like(parameter), square=torch.zeros_like(parameter), step=0)
        grad = parameter.grad
        assert grad is not None
        first, second = group["betas"]
        state["step"] += 1
        state["average"].lerp_(grad, 1 - first)
        state["square"].lerp_(grad * grad, 1 - second)
        average = state["average"] / (1 - first ** state["step"])
        square = state["square"] / (1 - second ** state["step"])
        parameter.add_(average / (square.sqrt() + 1e-8), alpha=-group["lr"])
