"""Gated residual: ``residual += gate * x``."""

from typing import Any

import torch
from torch import Tensor

from ..launching.checks import check_dtype, check_same_device
from ..launching.kernel_specs import KernelSpec, Shape, register
from ..launching.launch import launch, settings
from ..launching.triton_import import tl, triton


def gated_residual_reference(residual: Tensor, x: Tensor, gate: Tensor) -> None:
    residual.copy_(residual.float() + gate.float().unsqueeze(1) * x.float())


@triton.jit
def _gated_residual_kernel(  # type: ignore[no-untyped-def]
    residual_ptr,
    x_ptr,
    gate_ptr,
    residual_batch_stride,
    residual_row_stride,
    x_batch_stride,
    x_row_stride,
    seq_len,
    dim,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // seq_len, row % seq_len
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < dim

    residual_row = residual_ptr + batch * residual_batch_stride + token * residual_row_stride
    x_row = x_ptr + batch * x_batch_stride + token * x_row_stride
    residual = tl.load(residual_row + cols, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_row + cols, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + batch * dim + cols, mask=mask, other=0.0).to(tl.float32)
    y = residual + gate * x
    tl.store(residual_row + cols, y.to(residual_ptr.dtype.element_ty), mask=mask)


def _launch(residual: Tensor, x: Tensor, gate: Tensor) -> None:
    _check(residual, x, gate)
    batch, seq_len, dim = residual.shape
    if x.stride(-1) != 1:
        x = x.contiguous()
    options = settings("gated_residual", residual.device)
    launch(
        _gated_residual_kernel,
        (batch * seq_len, triton.cdiv(dim, options["BLOCK"])),
        residual,
        x,
        gate.contiguous(),
        residual.stride(0),
        residual.stride(1),
        x.stride(0),
        x.stride(1),
        seq_len,
        dim,
        **options,
    )


def _check(residual: Tensor, x: Tensor, gate: Tensor) -> None:
    if residual.ndim != 3:
        raise ValueError(f"residual must be [B, N, D], got {tuple(residual.shape)}")
    batch, _, dim = residual.shape
    if x.shape != residual.shape:
        raise ValueError(f"x must have the shape of residual {tuple(residual.shape)}, got {tuple(x.shape)}")
    if gate.shape != (batch, dim):
        raise ValueError(f"gate must be [B, D] = {(batch, dim)}, got {tuple(gate.shape)}")
    if residual.stride(-1) != 1:
        raise ValueError(f"residual must have contiguous channels, got strides {residual.stride()}")
    for name, tensor in (("residual", residual), ("x", x), ("gate", gate)):
        check_dtype(name, tensor)
    check_same_device(residual=residual, x=x, gate=gate)


@torch.library.custom_op("isoframe::gated_residual", mutates_args=("residual",), device_types="cpu")
def gated_residual(residual: Tensor, x: Tensor, gate: Tensor) -> None:
    """Add a gated branch to the residual stream, in place.

    Args:
        residual: residual stream ``[B, N, D]``, any strides with contiguous channels; written. One rounding, to its
            dtype.
        x: output of the branch ``[B, N, D]``.
        gate: gate ``[B, D]``.
    """
    _check(residual, x, gate)
    residual.addcmul_(x, gate.unsqueeze(1))


gated_residual.register_kernel("cuda")(_launch)
gated_residual.register_fake(_check)


def _make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, _, dim = shape
    return tuple(torch.randn(s, device=device).to(dtype) for s in (shape, shape, (batch, dim)))


register(
    KernelSpec(
        name="gated_residual",
        formula="residual += gate * x",
        fuses="cast to fp32, multiplication by the gate, addition, cast back",
        exactness="rounding",
        op=gated_residual,
        reference=gated_residual_reference,
        launch=_launch,
        make_inputs=_make_inputs,
        test_shapes=((1, 1, 8), (2, 7, 96), (2, 5, 3072)),
        bench_shapes=((1, 17226, 3072),),
        max_error={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 3e-3},
        mutates=(0,),
        strided=(0, 1),
    )
)
