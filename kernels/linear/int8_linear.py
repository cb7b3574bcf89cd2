"""Linear layer on int8 tokens and weights (W8A8), with its epilogue.

``y = sum over K ranges r of row_scale_r * weight_scale_r * (values_r . weight_r) + bias``, then GELU (tanh), or
``residual += gate * y``. The products accumulate exactly in int32: K * 127^2 stays below 2^31 up to K = 133 144.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..launching.checks import check_dtype, check_same_device, check_shape
from ..launching.kernel_specs import KernelSpec, Shape, register
from ..launching.launch import Settings, launch, settings
from ..launching.triton_import import tl, triton
from .int8_product import int8_product
from .quantize import check_split, k_ranges

_MAX_DIM = 2**31 // 127**2
# Rows of the CPU path in groups whose int32 and fp32 products stay in the cache.
_CHUNK_BYTES = 2**21


def int8_linear_reference(
    values: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    split: int,
    gelu: bool,
    out: Tensor,
) -> None:
    y = _linear_reference(values, row_scale, weight, weight_scale, bias, split)
    out.copy_(torch.nn.functional.gelu(y, approximate="tanh") if gelu else y)


def int8_linear_residual_reference(
    values: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    split: int,
    gate: Tensor,
    residual: Tensor,
) -> None:
    y = _linear_reference(values, row_scale, weight, weight_scale, bias, split)
    residual.copy_(residual.float() + gate.float().unsqueeze(1) * y)


def _linear_reference(
    values: Tensor, row_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, split: int
) -> Tensor:
    y = torch.zeros((*values.shape[:2], weight.shape[0]), device=values.device)
    for i, (start, stop) in enumerate(k_ranges(values.shape[-1], split)):
        # fp64 holds the int32 product exactly.
        product = values[..., start:stop].double() @ weight[:, start:stop].double().T
        y += product.float() * row_scale[i].unsqueeze(-1) * weight_scale[i]
    return y + bias.float()


@triton.jit
def _accumulate(  # type: ignore[no-untyped-def]
    values_rows, weight_rows, start, stop, acc, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr
):
    """Add the product of channels ``start`` to ``stop`` of two sets of rows to ``acc``."""
    for k in range(start, stop, BLOCK_K):
        cols = k + tl.arange(0, BLOCK_K)
        if EVEN_K:
            values = tl.load(values_rows + cols[None, :])
            weight = tl.load(weight_rows + cols[:, None])
        else:
            values = tl.load(values_rows + cols[None, :], mask=cols[None, :] < stop, other=0)
            weight = tl.load(weight_rows + cols[:, None], mask=cols[:, None] < stop, other=0)
        acc = tl.dot(values, weight, acc, out_dtype=tl.int32)
    return acc


@triton.jit
def _int8_linear_kernel(  # type: ignore[no-untyped-def]
    values_ptr,
    row_scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    bias_ptr,
    gate_ptr,
    out_ptr,
    values_batch_stride,
    values_row_stride,
    row_scale_range_stride,
    row_scale_batch_stride,
    weight_row_stride,
    out_batch_stride,
    out_row_stride,
    num_rows,
    num_cols,
    dim,
    split,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    TWO_RANGES: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    # Consecutive programs share a tile of weights: GROUP_M tiles of rows for each tile of columns.
    tile, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles_m, tiles_n = tl.cdiv(num_rows, BLOCK_M), tl.cdiv(num_cols, BLOCK_N)
    first_m = tile // (GROUP_M * tiles_n) * GROUP_M
    group_m = tl.minimum(tiles_m - first_m, GROUP_M)
    in_group = tile % (GROUP_M * tiles_n)
    rows = (first_m + in_group % group_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = (in_group // group_m) * BLOCK_N + tl.arange(0, BLOCK_N)

    # Rows and columns past the end repeat the last one; only the stores are masked.
    row = tl.minimum(rows, num_rows - 1)
    col = tl.minimum(cols, num_cols - 1)
    values_rows = values_ptr + batch * values_batch_stride + row.to(tl.int64)[:, None] * values_row_stride
    weight_rows = weight_ptr + col.to(tl.int64)[None, :] * weight_row_stride
    row_scale = row_scale_ptr + batch * row_scale_batch_stride + row

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    first_stop = split if TWO_RANGES else dim
    acc = _accumulate(values_rows, weight_rows, 0, first_stop, acc, BLOCK_K, EVEN_K)
    y = acc.to(tl.float32) * tl.load(row_scale)[:, None] * tl.load(weight_scale_ptr + col)[None, :]
    if TWO_RANGES:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        acc = _accumulate(values_rows, weight_rows, split, dim, acc, BLOCK_K, EVEN_K)
        scale = tl.load(row_scale + row_scale_range_stride)[:, None]
        y += acc.to(tl.float32) * scale * tl.load(weight_scale_ptr + num_cols + col)[None, :]
    y += tl.load(bias_ptr + col).to(tl.float32)[None, :]

    mask = (rows < num_rows)[:, None] & (cols < num_cols)[None, :]
    out = out_ptr + batch * out_batch_stride + rows.to(tl.int64)[:, None] * out_row_stride + cols[None, :]
    if GELU:
        # 0.5 * (1 + tanh(u)) = 1 / (1 + exp(-2 u))
        y = y / (1.0 + tl.exp(-1.5957691216057308 * (y + 0.044715 * y * y * y)))
    if RESIDUAL:
        gate = tl.load(gate_ptr + batch * num_cols + col).to(tl.float32)[None, :]
        y = tl.load(out, mask=mask, other=0.0).to(tl.float32) + gate * y
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=mask)


def _check_linear(
    values: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    split: int,
    gelu: bool,
    out: Tensor,
) -> None:
    _check(values, row_scale, weight, weight_scale, bias, split, "out", out)


def _check_residual(
    values: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    split: int,
    gate: Tensor,
    residual: Tensor,
) -> None:
    _check(values, row_scale, weight, weight_scale, bias, split, "residual", residual)
    check_shape("gate", gate, "[B, N]", (values.shape[0], weight.shape[0]))
    check_dtype("gate", gate)
    check_same_device(values=values, gate=gate)


def _check(
    values: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    split: int,
    out_name: str,
    out: Tensor,
) -> None:
    if values.ndim != 3:
        raise ValueError(f"values must be [B, M, K], got {tuple(values.shape)}")
    batch, num_rows, dim = values.shape
    if weight.ndim != 2 or weight.shape[1] != dim:
        raise ValueError(f"weight must be [N, K] with K = {dim}, got {tuple(weight.shape)}")
    if dim > _MAX_DIM:
        raise ValueError(f"K must be at most {_MAX_DIM}, where int32 may overflow, got {dim}")
    check_split(split, dim)
    num_ranges, num_cols = len(k_ranges(dim, split)), weight.shape[0]
    check_shape("row_scale", row_scale, "[R, B, M]", (num_ranges, batch, num_rows))
    check_shape("weight_scale", weight_scale, "[R, N]", (num_ranges, num_cols))
    check_shape("bias", bias, "[N]", (num_cols,))
    check_shape(out_name, out, "[B, M, N]", (batch, num_rows, num_cols))
    for name, tensor in (("values", values), ("weight", weight)):
        check_dtype(name, tensor, (torch.int8,))
    for name, tensor in (("row_scale", row_scale), ("weight_scale", weight_scale)):
        check_dtype(name, tensor, (torch.float32,))
    check_dtype("bias", bias)
    check_dtype(out_name, out)
    rows = {"values": values, "row_scale": row_scale, "weight": weight, out_name: out}
    for name, tensor in rows.items():
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} must be contiguous along its last dimension, got strides {tensor.stride()}"
            )
    check_same_device(**rows, weight_scale=weight_scale, bias=bias)


def _launch_linear(
    values: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    split: int,
    gelu: bool,
    out: Tensor,
) -> None:
    _check_linear(values, row_scale, weight, weight_scale, bias, split, gelu, out)
    _launch(values, row_scale, weight, weight_scale, bias, split, bias, out, GELU=gelu, RESIDUAL=False)


def _launch_residual(
    values: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    split: int,
    gate: Tensor,
    residual: Tensor,
) -> None:
    _check_residual(values, row_scale, weight, weight_scale, bias, split, gate, residual)
    gate = gate.contiguous()
    _launch(values, row_scale, weight, weight_scale, bias, split, gate, residual, GELU=False, RESIDUAL=True)


def _launch(
    values: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    split: int,
    gate: Tensor,
    out: Tensor,
    **epilogue: bool,
) -> None:
    (batch, num_rows, dim), num_cols = values.shape, weight.shape[0]
    options = settings("int8_linear_two_ranges" if split else "int8_linear", values.device)
    tiles = triton.cdiv(num_rows, options["BLOCK_M"]) * triton.cdiv(num_cols, options["BLOCK_N"])
    launch(
        _int8_linear_kernel,
        (tiles, batch),
        values,
        row_scale,
        weight,
        weight_scale.contiguous(),
        bias.contiguous(),
        gate,
        out,
        values.stride(0),
        values.stride(1),
        row_scale.stride(0),
        row_scale.stride(1),
        weight.stride(0),
        out.stride(0),
        out.stride(1),
        num_rows,
        num_cols,
        dim,
        split,
        EVEN_K=_is_even(dim, split, options),
        TWO_RANGES=split > 0,
        **epilogue,
        **options,
    )


def _is_even(dim: int, split: int, options: Settings) -> bool:
    return dim % options["BLOCK_K"] == 0 and split % options["BLOCK_K"] == 0


@torch.library.custom_op("isoframe::int8_linear", mutates_args=("out",), device_types="cpu")
def int8_linear(
    values: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    split: int,
    gelu: bool,
    out: Tensor,
) -> None:
    """Multiply int8 tokens by an int8 weight, scale, add the bias and optionally apply GELU (tanh).

    Args:
        values: int8 tokens ``[B, M, K]``, any strides with contiguous channels, as of :func:`quantize_rows`.
        row_scale: fp32 ``[R, B, M]``, contiguous along M: a scale for each token and K range, R = 2 with ``split``.
        weight: int8 ``[N, K]``, contiguous along K.
        weight_scale: fp32 ``[R, N]``.
        bias: ``[N]``.
        split: first channel of the second K range; 0 for a single range.
        gelu: whether GELU follows.
        out: ``[B, M, N]``, any strides with contiguous channels; written. fp32 epilogue, one rounding.
    """
    _check_linear(values, row_scale, weight, weight_scale, bias, split, gelu, out)
    for y, batch, rows in _linear_chunks(values, row_scale, weight, weight_scale, bias, split):
        out[batch, rows] = torch.nn.functional.gelu(y, approximate="tanh") if gelu else y


int8_linear.register_kernel("cuda")(_launch_linear)
int8_linear.register_fake(_check_linear)


@torch.library.custom_op("isoframe::int8_linear_residual", mutates_args=("residual",), device_types="cpu")
def int8_linear_residual(
    values: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    split: int,
    gate: Tensor,
    residual: Tensor,
) -> None:
    """Add the gated result of an int8 linear layer to the residual stream, in place.

    Args:
        values: int8 tokens ``[B, M, K]``, any strides with contiguous channels, as of :func:`quantize_rows`.
        row_scale: fp32 ``[R, B, M]``, contiguous along M: a scale for each token and K range, R = 2 with ``split``.
        weight: int8 ``[N, K]``, contiguous along K.
        weight_scale: fp32 ``[R, N]``.
        bias: ``[N]``.
        split: first channel of the second K range; 0 for a single range.
        gate: gate ``[B, N]``.
        residual: residual stream ``[B, M, N]``, any strides with contiguous channels; written. fp32 epilogue, one
            rounding.
    """
    _check_residual(values, row_scale, weight, weight_scale, bias, split, gate, residual)
    for y, batch, rows in _linear_chunks(values, row_scale, weight, weight_scale, bias, split):
        residual[batch, rows].addcmul_(y, gate[batch])


int8_linear_residual.register_kernel("cuda")(_launch_residual)
int8_linear_residual.register_fake(_check_residual)


def _linear_chunks(
    values: Tensor, row_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, split: int
) -> Iterator[tuple[Tensor, int, slice]]:
    """The CPU path: fp32 results before the activation, with their sample and rows."""
    batch_size, num_rows, dim = values.shape
    step = max(_CHUNK_BYTES // (4 * weight.shape[0]), 64)
    bias = bias.float()
    for batch in range(batch_size):
        for first in range(0, num_rows, step):
            rows, y = slice(first, first + step), bias
            for i, (start, stop) in enumerate(k_ranges(dim, split)):
                product = int8_product(values[batch, rows, start:stop], weight[:, start:stop])
                y = torch.addcmul(y, product.mul_(row_scale[i, batch, rows].unsqueeze(1)), weight_scale[i])
            yield y, batch, rows


def _make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, num_rows, num_cols, dim, split = shape
    values = torch.randint(-127, 128, (batch, num_rows, dim), dtype=torch.int8, device=device)
    weight = torch.randint(-127, 128, (num_cols, dim), dtype=torch.int8, device=device)
    num_ranges = len(k_ranges(dim, split))
    row_scale = (torch.rand(num_ranges, batch, num_rows, device=device) + 0.1) / 127
    weight_scale = (torch.rand(num_ranges, num_cols, device=device) + 0.1) / (127 * dim**0.5)
    bias = torch.randn(num_cols, device=device).to(dtype)
    return values, row_scale, weight, weight_scale, bias, split


def _make_linear_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    *shape, gelu = shape  # type: ignore[assignment]
    inputs = _make_inputs(shape, dtype, device)
    out = torch.full((*shape[:2], shape[2]), torch.nan, dtype=dtype, device=device)
    return *inputs, bool(gelu), out


def _make_residual_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    inputs = _make_inputs(shape, dtype, device)
    gate = torch.randn(shape[0], shape[2], device=device).to(dtype)
    return *inputs, gate, torch.randn(shape[:3], device=device).to(dtype)


_MAX_ERROR = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 3e-3}

register(
    KernelSpec(
        name="int8_linear",
        formula="out = act(sum_r row_scale_r * weight_scale_r * (values_r . weight_r) + bias), act = GELU (tanh) or none",
        fuses="int32 product of each K range, scaling by rows and columns, sum of the ranges, bias, GELU, cast",
        exactness="approximate",
        op=int8_linear,
        reference=int8_linear_reference,
        launch=_launch_linear,
        make_inputs=_make_linear_inputs,
        # batch, rows, columns, K, split, GELU
        test_shapes=(
            (1, 1, 8, 16, 0, 0),
            (1, 63, 96, 128, 0, 1),
            (2, 17, 40, 75, 0, 0),
            (1, 33, 48, 256, 128, 0),
            (2, 130, 24, 96, 40, 1),
        ),
        # Projections of the single and the double blocks; the last one is the single block's output projection.
        bench_shapes=(
            (1, 18261, 21504, 3072, 0, 0),
            (1, 18261, 12288, 3072, 0, 1),
            (1, 18261, 9216, 3072, 0, 0),
            (1, 18261, 3072, 15360, 3072, 0),
        ),
        max_error=_MAX_ERROR,
        mutates=(7,),
        strided=(0, 7),
        mma={"_int8_linear_kernel": ("s8",)},
    )
)

register(
    KernelSpec(
        name="int8_linear_residual",
        formula="residual += gate * (sum_r row_scale_r * weight_scale_r * (values_r . weight_r) + bias)",
        fuses="int8_linear, multiplication by the gate, addition to the residual stream",
        exactness="approximate",
        op=int8_linear_residual,
        reference=int8_linear_residual_reference,
        launch=_launch_residual,
        make_inputs=_make_residual_inputs,
        # batch, rows, columns, K, split
        test_shapes=((1, 1, 8, 16, 0), (2, 63, 96, 128, 0), (1, 17, 40, 75, 0), (2, 33, 48, 256, 128)),
        bench_shapes=(
            (1, 18261, 3072, 3072, 0),
            (1, 18261, 3072, 12288, 0),
            (1, 18261, 3072, 15360, 3072),
        ),
        max_error=_MAX_ERROR,
        mutates=(7,),
        strided=(0, 7),
        mma={"_int8_linear_kernel": ("s8",)},
    )
)
