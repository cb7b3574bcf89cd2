"""Storage of the transformer's weights and the checkpoint name of every part of it."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..quant import Linear
from .destinations import DenseTensor


class JobLinear(Protocol):
    """A linear layer that only the start of a job needs."""

    def __call__(self, x: Tensor) -> Tensor: ...


class JobBook(Protocol):
    """Gives the weights that only the start of a job needs, wherever they live until then."""

    def linear(
        self, names: str | Sequence[str], in_features: int, out_features: int | Sequence[int]
    ) -> JobLinear: ...

    def tensor(self, name: str, *shape: int) -> Tensor: ...


class ParameterBook:
    """Allocates parameters and remembers which view belongs to which checkpoint tensor.

    Attributes:
        destinations: checkpoint name -> where the tensor goes; stacked layers are row slices.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self.destinations: dict[str, DenseTensor] = {}

    def linear(
        self, names: str | Sequence[str], in_features: int, out_features: int | Sequence[int]
    ) -> Linear:
        """One linear that stacks the layers ``names`` along its output."""
        names = [names] if isinstance(names, str) else list(names)
        rows = [out_features] * len(names) if isinstance(out_features, int) else list(out_features)
        layer = Linear(self._empty(sum(rows), in_features), self._empty(sum(rows)))
        start = 0
        for name, count in zip(names, rows, strict=True):
            part = layer.rows(start, start + count)
            self._add(f"{name}.weight", part.weight)
            self._add(f"{name}.bias", part.bias)
            start += count
        return layer

    def stacked(self, names: Sequence[str], dim: int) -> Tensor:
        """Vectors ``names`` as the rows of one [len(names), dim] tensor; a repeated name fills both rows."""
        stack = self._empty(len(set(names)), dim)
        for i, name in enumerate(dict.fromkeys(names)):
            self._add(name, stack[i])
        return stack.expand(len(names), dim) if len(set(names)) == 1 else stack

    def tensor(self, name: str, *shape: int) -> Tensor:
        """One parameter as it is in the checkpoint."""
        parameter = self._empty(*shape)
        self._add(name, parameter)
        return parameter

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _add(self, name: str, view: Tensor) -> None:
        assert name not in self.destinations, name
        self.destinations[name] = DenseTensor(view)
