"""What a weight format is: how a linear layer is stored, and the product that computes from the storage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

# What a projection multiplies: a tensor of rows, or in 8-bit arithmetic their QuantizedRows. Both slice as x[:, rows].
Activation = Any


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a stored weight.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        row_axis: the axis that counts output rows; slices of it are the storage of a slice of the weight.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    row_axis: int = 0


class Projection(Protocol):
    """A linear layer ``y = x W^T + b`` that computes, or several stacked along the output."""

    @property
    def out_features(self) -> int: ...

    @property
    def in_features(self) -> int: ...

    def rows(self, start: int, end: int | None = None) -> Self:
        """The layers stacked at output rows ``start`` to ``end``, as views."""
        ...

    def norm_input(self, x: Tensor, scale: Tensor, shift: Tensor) -> Activation:
        """Modulated LayerNorm of the residual stream ``x`` [1, M, K], as :meth:`into` takes it."""
        ...

    def input(self, x: Tensor) -> Activation:
        """``x`` [1, M, K] as :meth:`into` and :meth:`add_gated` take it."""
        ...

    def dense(self, x: Activation) -> Tensor:
        """The values [1, M, K] that ``x`` stands for, in the dtype of the activations."""
        ...

    def into(self, x: Activation, out: Tensor, *, gelu: bool = False) -> None:
        """Write the product, through GELU (tanh) if asked, to ``out`` [1, M, N]: any row stride."""
        ...

    def add_gated(self, x: Activation, residual: Tensor, gate: Tensor) -> None:
        """``residual += gate * product``; residual [1, M, N] with any row stride, gate [1, N]."""
        ...


class StoredLayer(Protocol):
    """A linear layer as it lies in memory."""

    def unpacked(self) -> Projection:
        """The layer that computes: itself, or with weights expanded. A block asks once, and drops it at its end."""
        ...


class WeightFormat(Protocol):
    """Storage and arithmetic of the linear layers inside the transformer's blocks.

    ``split`` counts the inputs of the first of two ranges that are scaled apart; 0 means one range.
    """

    @property
    def name(self) -> str:
        """The precision as a configuration names it, such as "int8"."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the activations that the layers take and give."""
        ...

    def storage(self, rows: int, cols: int, split: int = 0) -> dict[str, StoredTensor]:
        """The tensors that hold a weight [rows, cols], by name, in storage order; the bias is apart."""
        ...

    def encode(self, weight: Tensor, split: int = 0) -> dict[str, Tensor]:
        """Stored tensors of a weight [n, K], any float dtype. Rows are independent of each other."""
        ...

    def decode(self, stored: Mapping[str, Tensor], split: int = 0) -> Tensor:
        """The weight [n, K] in fp32 that ``stored`` stands for."""
        ...

    def layer(self, stored: Mapping[str, Tensor], bias: Tensor, split: int = 0) -> StoredLayer:
        """The layer that ``stored`` and ``bias`` [n] make."""
        ...
