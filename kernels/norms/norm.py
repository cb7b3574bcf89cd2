"""Modulated LayerNorm (AdaLN): ``y = LayerNorm(x) * (1 + scale) + shift``."""

from typing import Any

import torch
from torch import Tensor

from ..launching.checks import check_dtype, check_same_device
from ..launching.kernel_specs import KernelSpec, Shape, register
from ..launching.launch import launch, settings
from ..launching.triton_import import tl, triton

# One program holds a whole row in registers.
MAX_DIM = 16384


def modulated_layer_norm_reference(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    normed = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return (normed * (1 + scale.float().unsqueeze(1)) + shift.float().unsqueeze(1)).to(x.dtype)


@triton.jit
def normalize_row(x, scale_ptr, shift_ptr, dim, eps, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Modulated LayerNorm of one fp32 row; channels past ``dim`` must be zero and stay so."""
    cols = tl.arange(0, BLOCK)
    mask = cols < dim
    mean = tl.sum(x, axis=0) / dim
    # Masked lanes hold -mean after the subtraction and would enter the variance.
    centered = tl.where(mask, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centered * centered, axis=0) / dim + eps)
    scale = tl.load(scale_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    return centered * rstd * (1.0 + scale) + shift


@triton.jit
def _modulated_layer_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    x_batch_stride,
    x_row_stride,
    seq_len,
    dim,
    eps,
    BLOCK: tl.constexpr,
):
    # int64: row * dim overflows int32 past 2**31 elements.
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // seq_len, row % seq_len
    cols = tl.arange(0, BLOCK)
    mask = cols < dim

    x_row = x_ptr + batch * x_batch_stride + token * x_row_stride
    x = tl.load(x_row + cols, mask=mask, other=0.0).to(tl.float32)
    y = normalize_row(x, scale_ptr + batch * dim, shift_ptr + batch * dim, dim, eps, BLOCK)
    tl.store(y_ptr + row * dim + cols, y.to(y_ptr.dtype.element_ty), mask=mask)


def _launch(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    check_norm(x, scale, shift)
    batch, seq_len, dim = x.shape
    if x.stride(-1) != 1:
        x = x.contiguous()
    y = torch.empty((batch, seq_len, dim), dtype=x.dtype, device=x.device)
    launch(
        _modulated_layer_norm_kernel,
        (batch * seq_len,),
        x,
        scale.contiguous(),
        shift.contiguous(),
        y,
        x.stride(0),
        x.stride(1),
        seq_len,
        dim,
        eps,
        BLOCK=triton.next_power_of_2(dim),
        **settings("modulated_layer_norm", x.device),
    )
    return y


@torch.library.custom_op("isoframe::modulated_layer_norm", mutates_args=(), device_types="cpu")
def modulated_layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalize each token and apply the per-sample modulation.

    Args:
        x: tokens ``[B, N, D]``; fp32, fp16 or bf16, D at most 16384.
        scale: modulation scale ``[B, D]``; zero leaves the normalized value unchanged.
        shift: modulation shift ``[B, D]``.
        eps: added to the variance.

    Returns:
        ``[B, N, D]`` in ``x.dtype``, contiguous. Statistics are accumulated in fp32.
    """
    check_norm(x, scale, shift)
    if x.shape[0] > 1:
        return modulated_layer_norm_reference(x, scale, shift, eps)
    # One pass over x: for a single sample the modulation is the affine part of the norm.
    weight, bias = scale[0].float() + 1, shift[0].float()
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


modulated_layer_norm.register_kernel("cuda")(_launch)


@modulated_layer_norm.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    check_norm(x, scale, shift)
    return x.new_empty(x.shape)


def check_norm(x: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Raise a ValueError that names the argument that does not fit."""
    if x.ndim != 3:
        raise ValueError(f"x must be [B, N, D], got {tuple(x.shape)}")
    batch, _, dim = x.shape
    if dim > MAX_DIM:
        raise ValueError(f"D must be at most {MAX_DIM}, got {dim}")
    for name, modulation in (("scale", scale), ("shift", shift)):
        if modulation.shape != (batch, dim):
            raise ValueError(f"{name} must be [B, D] = {(batch, dim)}, got {tuple(modulation.shape)}")
        check_dtype(name, modulation)
    check_dtype("x", x)
    check_same_device(x=x, scale=scale, shift=shift)


def make_norm_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    """Tokens, scale and shift of ``shape`` [B, N, D]."""
    batch, _, dim = shape
    return tuple(torch.randn(s, device=device).to(dtype) for s in (shape, (batch, dim), (batch, dim)))


register(
    KernelSpec(
        name="modulated_layer_norm",
        formula="y = LayerNorm(x) * (1 + scale) + shift",
        fuses="cast to fp32, LayerNorm, multiplication and addition of the modulation, cast back",
        exactness="rounding",
        op=modulated_layer_norm,
        reference=modulated_layer_norm_reference,
        launch=_launch,
        make_inputs=make_norm_inputs,
        test_shapes=((1, 1, 8), (1, 7, 96), (1, 5, 3072), (2, 7, 96)),
        # The packed sequence of one section at 544x704.
        bench_shapes=((1, 17226, 3072),),
        max_error={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 3e-3},
        strided=(0,),
    )
)
