"""Gated residual: ``residual += gate * x``."""

from typing import Any

import torch
from torch import Tensor

from ._registry import KernelSpec, Shape, register


def gated_residual_reference(residual: Tensor, x: Tensor, gate: Tensor) -> None:
    residual.copy_(residual.float() + gate.float().unsqueeze(1) * x.float())


@torch.library.custom_op("isoframe::gated_residual", mutates_args=("residual",))
def gated_residual(residual: Tensor, x: Tensor, gate: Tensor) -> None:
    """Add a gated branch to the residual stream, in place.

    Args:
        residual: residual stream ``[B, N, D]``; written. One rounding, to its dtype.
        x: output of the branch ``[B, N, D]``.
        gate: gate ``[B, D]``.
    """
    _check(residual, x, gate)
    residual.addcmul_(x, gate.unsqueeze(1))


@gated_residual.register_fake
def _(residual: Tensor, x: Tensor, gate: Tensor) -> None:
    _check(residual, x, gate)


def _check(residual: Tensor, x: Tensor, gate: Tensor) -> None:
    if residual.ndim != 3:
        raise ValueError(f"residual must be [B, N, D], got {tuple(residual.shape)}")
    batch, _, dim = residual.shape
    if x.shape != residual.shape:
        raise ValueError(f"x must have the shape of residual {tuple(residual.shape)}, got {tuple(x.shape)}")
    if gate.shape != (batch, dim):
        raise ValueError(f"gate must be [B, D] = {(batch, dim)}, got {tuple(gate.shape)}")


def _make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, _, dim = shape
    return tuple(torch.randn(s, device=device).to(dtype) for s in (shape, shape, (batch, dim)))


register(
    KernelSpec(
        name="gated_residual",
        op=gated_residual,
        reference=gated_residual_reference,
        make_inputs=_make_inputs,
        test_shapes=((1, 1, 8), (2, 7, 96), (2, 5, 3072)),
        bench_shapes=((1, 17226, 3072),),
        max_error={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 3e-3},
        mutates=(0,),
    )
)
