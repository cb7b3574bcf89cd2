"""What a step cache computes around the blocks.

``change = mean|current - previous| / mean|previous|`` decides whether a step is skipped;
``y = LayerNorm(tokens + residual) * (1 + scale) + shift`` is the input of the output projection of a skipped one.
"""

from typing import Any

import torch
from torch import Tensor

from ..launching.checks import check_dtype, check_same_device
from ..launching.kernel_specs import KernelSpec, Shape, register
from ..launching.launch import launch, settings
from ..launching.triton_import import tl, triton
from .norm import MAX_DIM, modulated_layer_norm, modulated_layer_norm_reference, normalize_row

# Partial sums that the last program adds at a time.
_PARTIALS = 1024


def step_change_reference(current: Tensor, previous: Tensor) -> Tensor:
    return ((current - previous).abs().mean() / previous.abs().mean()).float()


@triton.jit
def _row_change_kernel(  # type: ignore[no-untyped-def]
    current_ptr,
    previous_ptr,
    partial_ptr,
    current_batch_stride,
    current_row_stride,
    previous_batch_stride,
    previous_row_stride,
    seq_len,
    dim,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // seq_len, row % seq_len
    cols = tl.arange(0, BLOCK)
    mask = cols < dim

    current_row = current_ptr + batch * current_batch_stride + token * current_row_stride
    previous_row = previous_ptr + batch * previous_batch_stride + token * previous_row_stride
    current = tl.load(current_row + cols, mask=mask, other=0.0).to(tl.float32)
    previous = tl.load(previous_row + cols, mask=mask, other=0.0).to(tl.float32)
    # The published rule subtracts in the tensors' dtype.
    change = (current - previous).to(current_ptr.dtype.element_ty).to(tl.float32)
    tl.store(partial_ptr + 2 * row, tl.sum(tl.abs(change), axis=0))
    tl.store(partial_ptr + 2 * row + 1, tl.sum(tl.abs(previous), axis=0))


@triton.jit
def _total_change_kernel(  # type: ignore[no-untyped-def]
    partial_ptr,
    current_ptr,
    change_ptr,
    num_rows,
    num_elements,
    BLOCK: tl.constexpr,
):
    # One program and a fixed order: the same tensors always give the same decision.
    changes = tl.zeros((BLOCK,), tl.float32)
    norms = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, num_rows, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        changes += tl.load(partial_ptr + 2 * rows, mask=rows < num_rows, other=0.0)
        norms += tl.load(partial_ptr + 2 * rows + 1, mask=rows < num_rows, other=0.0)
    # The published rule rounds both means and their ratio to the tensors' dtype; ``current_ptr`` only tells it.
    dtype: tl.constexpr = current_ptr.dtype.element_ty
    change = tl.div_rn(tl.sum(changes, axis=0), num_elements).to(dtype).to(tl.float32)
    norm = tl.div_rn(tl.sum(norms, axis=0), num_elements).to(dtype).to(tl.float32)
    tl.store(change_ptr, tl.div_rn(change, norm).to(dtype).to(tl.float32))


def _launch_step_change(current: Tensor, previous: Tensor) -> Tensor:
    _check_step_change(current, previous)
    batch, seq_len, dim = current.shape
    current, previous = (x if x.stride(-1) == 1 else x.contiguous() for x in (current, previous))
    partial = torch.empty((batch * seq_len, 2), dtype=torch.float32, device=current.device)
    change = torch.empty((), dtype=torch.float32, device=current.device)
    options = settings("step_change", current.device)
    launch(
        _row_change_kernel,
        (batch * seq_len,),
        current,
        previous,
        partial,
        *current.stride()[:2],
        *previous.stride()[:2],
        seq_len,
        dim,
        BLOCK=triton.next_power_of_2(dim),
        **options,
    )
    launch(
        _total_change_kernel,
        (1,),
        partial,
        current,
        change,
        batch * seq_len,
        float(current.numel()),
        BLOCK=_PARTIALS,
        **options,
    )
    return change


@torch.library.custom_op("isoframe::step_change", mutates_args=(), device_types="cpu")
def step_change(current: Tensor, previous: Tensor) -> Tensor:
    """Relative change of a step's first modulated input, as TeaCache's published rule rounds it.

    Args:
        current: input of this step ``[B, M, D]``, rows at any strides; fp32, fp16 or bf16, D at most 16384.
        previous: input of the step before, same shape and dtype.

    Returns:
        fp32 scalar. The difference, both means and their ratio are rounded to the dtype of ``current``; sums are fp32
        and deterministic. NaN where both are zero.
    """
    _check_step_change(current, previous)
    return step_change_reference(current, previous)


step_change.register_kernel("cuda")(_launch_step_change)


@step_change.register_fake
def _(current: Tensor, previous: Tensor) -> Tensor:
    _check_step_change(current, previous)
    return current.new_empty((), dtype=torch.float32)


def _check_step_change(current: Tensor, previous: Tensor) -> None:
    if current.ndim != 3:
        raise ValueError(f"current must be [B, M, D], got {tuple(current.shape)}")
    if current.numel() == 0:
        raise ValueError(f"current must have elements to compare, got {tuple(current.shape)}")
    if current.shape[-1] > MAX_DIM:
        raise ValueError(f"D must be at most {MAX_DIM}, got {current.shape[-1]}")
    if previous.shape != current.shape:
        raise ValueError(
            f"previous must have the shape of current {tuple(current.shape)}, got {tuple(previous.shape)}"
        )
    check_dtype("current", current)
    check_dtype("previous", previous, (current.dtype,))
    check_same_device(current=current, previous=previous)


def reuse_residual_reference(
    tokens: Tensor, residual: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6
) -> Tensor:
    return modulated_layer_norm_reference(tokens + residual, scale, shift, eps)


@triton.jit
def _reuse_residual_kernel(  # type: ignore[no-untyped-def]
    tokens_ptr,
    residual_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    tokens_batch_stride,
    tokens_row_stride,
    residual_batch_stride,
    residual_row_stride,
    seq_len,
    dim,
    eps,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // seq_len, row % seq_len
    cols = tl.arange(0, BLOCK)
    mask = cols < dim

    tokens_row = tokens_ptr + batch * tokens_batch_stride + token * tokens_row_stride
    residual_row = residual_ptr + batch * residual_batch_stride + token * residual_row_stride
    x = tl.load(tokens_row + cols, mask=mask, other=0.0).to(tl.float32)
    x += tl.load(residual_row + cols, mask=mask, other=0.0).to(tl.float32)
    # A computed step rounds the residual stream before its norm; a skipped one must do the same.
    x = x.to(tokens_ptr.dtype.element_ty).to(tl.float32)
    y = normalize_row(x, scale_ptr + batch * dim, shift_ptr + batch * dim, dim, eps, BLOCK)
    tl.store(y_ptr + row * dim + cols, y.to(y_ptr.dtype.element_ty), mask=mask)


def _launch_reuse_residual(
    tokens: Tensor, residual: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6
) -> Tensor:
    _check_reuse_residual(tokens, residual, scale, shift)
    batch, seq_len, dim = tokens.shape
    tokens, residual = (x if x.stride(-1) == 1 else x.contiguous() for x in (tokens, residual))
    y = torch.empty((batch, seq_len, dim), dtype=tokens.dtype, device=tokens.device)
    launch(
        _reuse_residual_kernel,
        (batch * seq_len,),
        tokens,
        residual,
        scale.contiguous(),
        shift.contiguous(),
        y,
        *tokens.stride()[:2],
        *residual.stride()[:2],
        seq_len,
        dim,
        eps,
        BLOCK=triton.next_power_of_2(dim),
        **settings("reuse_residual", tokens.device),
    )
    return y


@torch.library.custom_op("isoframe::reuse_residual", mutates_args=(), device_types="cpu")
def reuse_residual(
    tokens: Tensor, residual: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6
) -> Tensor:
    """Add a cached residual of the block stack, then normalize and modulate for the output projection.

    Args:
        tokens: embedded tokens of this step ``[B, M, D]``, rows at any strides; fp32, fp16 or bf16, D at most 16384.
        residual: what the blocks added in an earlier step, same shape and dtype.
        scale: modulation scale ``[B, D]`` of the output norm.
        shift: modulation shift ``[B, D]``.
        eps: added to the variance.

    Returns:
        ``[B, M, D]`` in ``tokens.dtype``, contiguous. The sum is rounded to that dtype, the rest is fp32.
    """
    _check_reuse_residual(tokens, residual, scale, shift)
    y: Tensor = modulated_layer_norm(tokens + residual, scale, shift, eps)
    return y


reuse_residual.register_kernel("cuda")(_launch_reuse_residual)


@reuse_residual.register_fake
def _(tokens: Tensor, residual: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    _check_reuse_residual(tokens, residual, scale, shift)
    return tokens.new_empty(tokens.shape)


def _check_reuse_residual(tokens: Tensor, residual: Tensor, scale: Tensor, shift: Tensor) -> None:
    if tokens.ndim != 3:
        raise ValueError(f"tokens must be [B, M, D], got {tuple(tokens.shape)}")
    batch, _, dim = tokens.shape
    if dim > MAX_DIM:
        raise ValueError(f"D must be at most {MAX_DIM}, got {dim}")
    if residual.shape != tokens.shape:
        raise ValueError(
            f"residual must have the shape of tokens {tuple(tokens.shape)}, got {tuple(residual.shape)}"
        )
    check_dtype("tokens", tokens)
    check_dtype("residual", residual, (tokens.dtype,))
    for name, modulation in (("scale", scale), ("shift", shift)):
        if modulation.shape != (batch, dim):
            raise ValueError(f"{name} must be [B, D] = {(batch, dim)}, got {tuple(modulation.shape)}")
        check_dtype(name, modulation)
    check_same_device(tokens=tokens, residual=residual, scale=scale, shift=shift)


def _make_step_change_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    previous = torch.randn(shape, device=device)
    return (previous + 0.1 * torch.randn(shape, device=device)).to(dtype), previous.to(dtype)


def _make_reuse_residual_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, _, dim = shape
    return tuple(torch.randn(s, device=device).to(dtype) for s in (shape, shape, (batch, dim), (batch, dim)))


register(
    KernelSpec(
        name="step_change",
        formula="mean|current - previous| / mean|previous|",
        fuses="subtraction, two absolute values, two means, division",
        exactness="rounding",
        op=step_change,
        reference=step_change_reference,
        launch=_launch_step_change,
        make_inputs=_make_step_change_inputs,
        # The last one has more rows than the last program adds at a time.
        test_shapes=((1, 1, 8), (2, 7, 96), (1, 5, 3072), (1, 1031, 5)),
        # All latent tokens of one section at 544x704.
        bench_shapes=((1, 17226, 3072),),
        max_error={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 3e-3},
        strided=(0, 1),
    )
)
register(
    KernelSpec(
        name="reuse_residual",
        formula="y = LayerNorm(tokens + residual) * (1 + scale) + shift",
        fuses="addition of the cached residual, cast to fp32, LayerNorm, modulation, cast back",
        exactness="rounding",
        op=reuse_residual,
        reference=reuse_residual_reference,
        launch=_launch_reuse_residual,
        make_inputs=_make_reuse_residual_inputs,
        test_shapes=((1, 1, 8), (2, 7, 96), (1, 5, 3072)),
        # The noisy tokens of one section at 544x704.
        bench_shapes=((1, 13464, 3072),),
        max_error={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 3e-3},
        strided=(0, 1),
    )
)
