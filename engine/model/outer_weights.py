"""The weights outside the blocks, by checkpoint name: allocated, or read whenever they compute; with or without LoRAs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...quant import Linear
from ..checkpoints.destinations import DenseTensor
from ..checkpoints.lora import ActiveLoras, merge
from .lora_layers import SideBranch, side_branch

# The weight of a checkpoint name and a shape, in any dtype, on any device.
ReadWeight = Callable[[str, tuple[int, ...]], Tensor]


class OuterLinear(Protocol):
    """A linear layer outside the blocks; most of them only the start of a job needs."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def float(self) -> "OuterLinear":
        """The layer in fp32."""
        ...


@dataclass(frozen=True, slots=True)
class ReadLinear:
    """A linear layer, several stacked along the output, that is read for each call and dropped after it.

    Attributes:
        read: gives the weights.
        layers: stacked ones, by checkpoint name.
        rows: outputs of each.
        in_features: inputs of all.
        dtype: in which it computes.
    """

    read: ReadWeight
    layers: tuple[str, ...]
    rows: tuple[int, ...]
    in_features: int
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(
            x, self._stacked("weight", x.device, self.in_features), self._stacked("bias", x.device)
        )

    def float(self) -> "ReadLinear":
        return replace(self, dtype=torch.float32)

    def _stacked(self, kind: str, device: torch.device, *columns: int) -> Tensor:
        parts = [
            self.read(f"{layer}.{kind}", (count, *columns)).to(device, self.dtype)
            for layer, count in zip(self.layers, self.rows, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True, slots=True)
class LoraLinear:
    """A linear layer outside the blocks with a side branch."""

    base: OuterLinear
    branch: SideBranch

    def __call__(self, x: Tensor) -> Tensor:
        """The product; factors that live elsewhere are on the device of ``x`` for this call."""
        out = self.base(x)
        for outputs, product in self.branch.to(x.device).products(x):
            out[..., outputs] += product
        return out

    def float(self) -> "LoraLinear":
        return LoraLinear(self.base.float(), self.branch.float())


class OuterWeights:
    """Makes the layers of a model by checkpoint name; one that is asked for again is the same.

    Attributes:
        destinations: checkpoint name -> where the tensor goes; stacked layers are row slices. None of what is read.
        shapes: of every matrix and kernel that was asked for, by checkpoint name without ``.weight``.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, read: ReadWeight | None = None) -> None:
        """Begin without layers; each is made when it is first asked for.

        Args:
            dtype: of the weights.
            device: where they live; a linear layer that is read computes where its input is.
            read: gives the weights; None allocates them, to be filled through :attr:`destinations`.
        """
        self.destinations: dict[str, DenseTensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._dtype = dtype
        self._device = device
        self._read = read
        self._linears: dict[tuple[str, ...], OuterLinear] = {}
        self._tensors: dict[str, Tensor] = {}
        self._loras: ActiveLoras = ()
        self._lora_device = device

    def with_loras(self, loras: ActiveLoras, device: torch.device) -> "OuterWeights":
        """These weights with LoRAs, whose factors live on ``device``: beside linear layers, merged into all others.

        What is merged is a copy, and these are the small patch embeddings.
        """
        adapted = copy.copy(self)
        adapted._loras, adapted._lora_device = loras, device
        return adapted

    def linear(
        self, names: str | Sequence[str], in_features: int, out_features: int | Sequence[int]
    ) -> OuterLinear:
        """One linear that stacks the layers ``names`` along its output, each of ``out_features`` rows."""
        layers = (names,) if isinstance(names, str) else tuple(names)
        rows = (out_features,) * len(layers) if isinstance(out_features, int) else tuple(out_features)
        if layers not in self._linears:
            self.shapes |= {layer: (count, in_features) for layer, count in zip(layers, rows, strict=True)}
            self._linears[layers] = (
                ReadLinear(self._read, layers, rows, in_features, self._dtype)
                if self._read is not None
                else self._allocated(layers, rows, in_features)
            )
        branch = side_branch(layers, rows, self._loras, self._dtype, self._lora_device)
        return self._linears[layers] if branch is None else LoraLinear(self._linears[layers], branch)

    def tensor(self, name: str, *shape: int) -> Tensor:
        """One parameter as it is in the checkpoint; norms are small enough to stay where they were read."""
        if name not in self._tensors:
            if len(shape) > 1:
                self.shapes[name.removesuffix(".weight")] = shape
            if self._read is None:
                self._tensors[name] = self._empty(*shape)
                self._add(name, self._tensors[name])
            else:
                self._tensors[name] = self._read(name, shape).to(self._device, self._dtype)
        return merge(name, self._tensors[name], self._loras, self._dtype)

    def stacked(self, names: Sequence[str], dim: int) -> Tensor:
        """Vectors ``names`` as the rows of one [len(names), dim] tensor; a repeated name fills both rows."""
        stack = self._empty(len(set(names)), dim)
        for i, name in enumerate(dict.fromkeys(names)):
            self._add(name, stack[i])
        return stack.expand(len(names), dim) if len(set(names)) == 1 else stack

    def _allocated(self, layers: Sequence[str], rows: Sequence[int], in_features: int) -> Linear:
        layer = Linear(self._empty(sum(rows), in_features), self._empty(sum(rows)))
        start = 0
        for name, count in zip(layers, rows, strict=True):
            part = layer.rows(start, start + count)
            self._add(f"{name}.weight", part.weight)
            self._add(f"{name}.bias", part.bias)
            start += count
        return layer

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def _add(self, name: str, view: Tensor) -> None:
        assert name not in self.destinations, name
        self.destinations[name] = DenseTensor(view)
