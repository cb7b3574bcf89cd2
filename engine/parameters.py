"""Storage of the transformer's weights and the checkpoint name of every part of it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..quant import Linear
from .destinations import DenseTensor


class ParameterBook:
    """Allocates parameters, or takes stored ones, and remembers which view belongs to which checkpoint tensor.

    Attributes:
        parameters: every parameter, by the checkpoint name of its first tensor.
        destinations: checkpoint name -> where the tensor goes; stacked layers are row slices.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, stored: Mapping[str, Tensor] | None = None
    ) -> None:
        """Start an empty book.

        Args:
            dtype: of all parameters.
            device: where they live.
            stored: parameters of an earlier book of the same model; None allocates.
        """
        self.dtype = dtype
        self.device = device
        self.parameters: dict[str, Tensor] = {}
        self.destinations: dict[str, DenseTensor] = {}
        self._stored = stored

    def linear(
        self, names: str | Sequence[str], in_features: int, out_features: int | Sequence[int]
    ) -> Linear:
        """One linear that stacks the layers ``names`` along its output."""
        names = [names] if isinstance(names, str) else list(names)
        rows = [out_features] * len(names) if isinstance(out_features, int) else list(out_features)
        weight = self._parameter(f"{names[0]}.weight", sum(rows), in_features)
        layer = Linear(weight, self._parameter(f"{names[0]}.bias", sum(rows)))
        start = 0
        for name, count in zip(names, rows, strict=True):
            part = layer.rows(start, start + count)
            self._add(f"{name}.weight", part.weight)
            self._add(f"{name}.bias", part.bias)
            start += count
        return layer

    def stacked(self, names: Sequence[str], dim: int) -> Tensor:
        """Vectors ``names`` as the rows of one [len(names), dim] tensor; a repeated name fills both rows."""
        stack = self._parameter(names[0], len(set(names)), dim)
        for i, name in enumerate(dict.fromkeys(names)):
            self._add(name, stack[i])
        return stack.expand(len(names), dim) if len(set(names)) == 1 else stack

    def tensor(self, name: str, *shape: int) -> Tensor:
        """One parameter as it is in the checkpoint."""
        parameter = self._parameter(name, *shape)
        self._add(name, parameter)
        return parameter

    def _parameter(self, name: str, *shape: int) -> Tensor:
        if self._stored is None:
            parameter = torch.empty(shape, dtype=self.dtype, device=self.device)
        else:
            parameter = self._stored[name].to(self.device, self.dtype)
            assert parameter.shape == shape, (name, parameter.shape, shape)
        self.parameters[name] = parameter
        return parameter

    def _add(self, name: str, view: Tensor) -> None:
        assert name not in self.destinations, name
        self.destinations[name] = DenseTensor(view)
