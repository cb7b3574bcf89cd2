"""Weights as they are: fp32, bf16 or fp16."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import gated_residual, modulated_layer_norm
from .formats import StoredTensor


@dataclass(frozen=True, slots=True)
class Linear:
    """``y = x W^T + b`` with weight [N, K] and bias [N] in one dtype; several layers may be stacked along N."""

    weight: Tensor
    bias: Tensor

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """The product; weights that live elsewhere are on the device of ``x`` for this call."""
        return torch.nn.functional.linear(x, self.weight.to(x.device), self.bias.to(x.device))

    def float(self) -> "Linear":
        return Linear(self.weight.float(), self.bias.float())

    def rows(self, start: int, end: int | None = None) -> "Linear":
        return Linear(self.weight[start:end], self.bias[start:end])

    def unpacked(self) -> "Linear":
        return self

    def norm_input(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.input(modulated_layer_norm(x, scale, shift))

    def input(self, x: Tensor) -> Tensor:
        # In fp16 the residual stream and its norms are fp32, so this is where values are rounded.
        return x.to(self.weight.dtype)

    def dense(self, x: Tensor) -> Tensor:
        return x

    def into(self, x: Tensor, out: Tensor, *, gelu: bool = False) -> None:
        torch.addmm(self.bias, x[0], self.weight.t(), out=out[0])
        if gelu:
            torch.ops.aten.gelu_(out, approximate="tanh")

    def add_gated(self, x: Tensor, residual: Tensor, gate: Tensor) -> None:
        # Two dimensions: with three, rows of any stride would take a product and a sum, rounded twice.
        product = torch.addmm(self.bias, x[0], self.weight.t())
        gated_residual(residual, product[None], gate)


@dataclass(frozen=True, slots=True)
class DenseFormat:
    """Stores and computes in ``dtype``."""

    dtype: torch.dtype

    @property
    def name(self) -> str:
        return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]

    def storage(self, rows: int, cols: int, split: int = 0) -> dict[str, StoredTensor]:
        return {"weight": StoredTensor((rows, cols), self.dtype)}

    def encode(self, weight: Tensor, split: int = 0) -> dict[str, Tensor]:
        rounded = weight.to(self.dtype)
        if self.dtype == torch.float16 and not rounded.isfinite().all():
            raise ValueError(
                f"weights must be finite and at most {torch.finfo(torch.float16).max:.0f} in fp16, got "
                f"{weight.abs().max():.3g}; use bf16"
            )
        return {"weight": rounded}

    def decode(self, stored: Mapping[str, Tensor], split: int = 0) -> Tensor:
        return stored["weight"].float()

    def layer(self, stored: Mapping[str, Tensor], bias: Tensor, split: int = 0) -> Linear:
        return Linear(stored["weight"], bias)
