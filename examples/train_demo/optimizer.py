"""Muon for matrices, Adam for the rest."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class MuonAdam:
    """torch's Muon (Nesterov momentum, update matched to Adam's RMS) for ``matrices``, its Adam for ``others``.

    Args:
        matrices: parameters of two or more dimensions; Muon sees them flattened to [rows, -1].
        others: any parameters.
        adam_scale: Adam's learning rate relative to Muon's.
        betas: Adam's decay rates.
        weight_decay: decoupled decay of the matrices.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        adam_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.0,
    ) -> None:
        self._matrices = list(matrices)
        # The same memory: torch's Muon takes two dimensions alone.
        self._flat = [matrix.detach().flatten(1) for matrix in self._matrices]
        self._adam_scale = adam_scale
        muon = torch.optim.Muon(self._flat, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._optimizers = {"muon": muon, "adam": torch.optim.Adam(others, betas=betas)}

    def step(self, learning_rate: float) -> None:
        """Apply one update from the gradients; Adam's learning rate is scaled."""
        for matrix, flat in zip(self._matrices, self._flat, strict=True):
            flat.grad = None if matrix.grad is None else matrix.grad.flatten(1)
        for name, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (self._adam_scale if name == "adam" else 1.0)
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Averages of both, for :meth:`load_state_dict`."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])
