"""Storage of the transformer's weights and the checkpoint name of every part of it."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...quant import Linear
from ..checkpoints.destinations import DenseTensor


class JobLinear(Protocol):
    """A linear layer outside the blocks; most of them only the start of a job needs."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def float(self) -> "JobLinear":
        """The layer in fp32."""
        ...


class JobBook(Protocol):
    """Gives the weights outside the blocks, wherever they live until they are needed."""

    def linear(
        self, names: str | Sequence[str], in_features: int, out_features: int | Sequence[int]
    ) -> JobLinear: ...

    def tensor(self, name: str, *shape: int) -> Tensor: ...


class KeptBook:
    """Gives what another book gives, and the same again when it is asked again.

    Attributes:
        shapes: shape of every matrix and kernel that was asked for, by checkpoint name without ``.weight``.
    """

    def __init__(self, base: JobBook) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._base = base
        self._linears: dict[tuple[str, ...], JobLinear] = {}
        self._tensors: dict[str, Tensor] = {}

    def linear(
        self, names: str | Sequence[str], in_features: int, out_features: int | Sequence[int]
    ) -> JobLinear:
        layers, rows = stacked_layers(names, out_features)
        if layers not in self._linears:
            self._linears[layers] = self._base.linear(names, in_features, out_features)
            self.shapes |= {layer: (count, in_features) for layer, count in zip(layers, rows, strict=True)}
        return self._linears[layers]

    def tensor(self, name: str, *shape: int) -> Tensor:
        if name not in self._tensors:
            self._tensors[name] = self._base.tensor(name, *shape)
            if len(shape) > 1:
                self.shapes[name.removesuffix(".weight")] = shape
        return self._tensors[name]


def stacked_layers(
    names: str | Sequence[str], out_features: int | Sequence[int]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and output rows of the layers that are stacked in one linear."""
    layers = (names,) if isinstance(names, str) else tuple(names)
    rows = (out_features,) * len(layers) if isinstance(out_features, int) else tuple(out_features)
    return layers, rows


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
        layers, rows = stacked_layers(names, out_features)
        layer = Linear(self._empty(sum(rows), in_features), self._empty(sum(rows)))
        start = 0
        for name, count in zip(layers, rows, strict=True):
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
