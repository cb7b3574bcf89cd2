"""Modulated LayerNorm as int8 rows: ``y = LayerNorm(x) * (1 + scale) + shift``, then ``value = round(y / max|y| * 127)``."""

import torch
from torch import Tensor

from ..launching.kernel_specs import KernelSpec, register
from ..launching.launch import launch, settings
from ..launching.triton_import import tl, triton
from ..linear.quantize import quantize_rows, quantize_rows_reference, row_scale, to_int8
from .norm import (
    check_norm,
    make_norm_inputs,
    modulated_layer_norm,
    modulated_layer_norm_reference,
    normalize_row,
)


def modulated_layer_norm_int8_reference(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    return quantize_rows_reference(modulated_layer_norm_reference(x.float(), scale, shift, eps))


@triton.jit
def _modulated_layer_norm_int8_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    scale_ptr,
    shift_ptr,
    values_ptr,
    row_scale_ptr,
    x_batch_stride,
    x_row_stride,
    seq_len,
    dim,
    eps,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // seq_len, row % seq_len
    cols = tl.arange(0, BLOCK)
    mask = cols < dim

    x_row = x_ptr + batch * x_batch_stride + token * x_row_stride
    x = tl.load(x_row + cols, mask=mask, other=0.0).to(tl.float32)
    y = normalize_row(x, scale_ptr + batch * dim, shift_ptr + batch * dim, dim, eps, BLOCK)
    quantum = row_scale(y)
    tl.store(values_ptr + row * dim + cols, to_int8(y, quantum), mask=mask)
    tl.store(row_scale_ptr + row, quantum)


def _launch(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    check_norm(x, scale, shift)
    batch, seq_len, dim = x.shape
    if x.stride(-1) != 1:
        x = x.contiguous()
    values, row_scales = _new_rows(x)
    launch(
        _modulated_layer_norm_int8_kernel,
        (batch * seq_len,),
        x,
        scale.contiguous(),
        shift.contiguous(),
        values,
        row_scales,
        x.stride(0),
        x.stride(1),
        seq_len,
        dim,
        eps,
        BLOCK=triton.next_power_of_2(dim),
        **settings("modulated_layer_norm_int8", x.device),
    )
    return values, row_scales


@torch.library.custom_op("isoframe::modulated_layer_norm_int8", mutates_args=(), device_types="cpu")
def modulated_layer_norm_int8(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Normalize and modulate each token and quantize the result, which is not rounded to 16 bit in between.

    Args:
        x: tokens ``[B, N, D]``, rows at any strides; fp32, fp16 or bf16, D at most 16384.
        scale: modulation scale ``[B, D]``; zero leaves the normalized value unchanged.
        shift: modulation shift ``[B, D]``.
        eps: added to the variance.

    Returns:
        ``(values, row_scale)`` as :func:`quantize_rows` gives them: int8 ``[B, N, D]`` and fp32 ``[1, B, N]``.
    """
    check_norm(x, scale, shift)
    values, row_scales = quantize_rows(modulated_layer_norm(x.float(), scale, shift, eps))
    return values, row_scales


modulated_layer_norm_int8.register_kernel("cuda")(_launch)


@modulated_layer_norm_int8.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    check_norm(x, scale, shift)
    return _new_rows(x)


def _new_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    values = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    return values, torch.empty((1, *x.shape[:2]), dtype=torch.float32, device=x.device)


register(
    KernelSpec(
        name="modulated_layer_norm_int8",
        formula="y = LayerNorm(x) * (1 + scale) + shift; row_scale = max|y| / 127; values = round(y / row_scale)",
        fuses="cast to fp32, LayerNorm, modulation, maximum of each row, division, rounding, cast to int8",
        exactness="approximate",
        op=modulated_layer_norm_int8,
        reference=modulated_layer_norm_int8_reference,
        launch=_launch,
        make_inputs=make_norm_inputs,
        test_shapes=((1, 1, 8), (1, 7, 96), (1, 5, 3072), (2, 7, 96)),
        bench_shapes=((1, 17226, 3072),),
        max_error={torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5},
        strided=(0,),
    )
)
