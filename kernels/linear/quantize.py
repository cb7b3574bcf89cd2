"""Symmetric int8 rows: ``scale = max|x| / 127``, ``value = round(x / scale)``, and back.

Ties round to even. The two parts of a split row, two K ranges of one matrix product, have a scale each.
"""

from typing import Any

import torch
from torch import Tensor

from ..launching.checks import check_dtype, check_same_device, check_shape
from ..launching.kernel_specs import KernelSpec, Shape, register
from ..launching.launch import launch, settings
from ..launching.triton_import import tl, triton

# One program holds a range of a row in registers.
_MAX_RANGE = 16384


def quantize_rows_reference(x: Tensor, split: int = 0) -> tuple[Tensor, Tensor]:
    values, scales = [], []
    for start, stop in k_ranges(x.shape[-1], split):
        part = x[..., start:stop].float()
        scale = part.abs().amax(-1) / 127
        scale = torch.where(scale == 0, 1.0, scale)
        values.append((part / scale.unsqueeze(-1)).round().to(torch.int8))
        scales.append(scale)
    return torch.cat(values, -1), torch.stack(scales)


def k_ranges(dim: int, split: int) -> list[tuple[int, int]]:
    """Ranges of channels with a scale each: all of ``dim``, or two that meet at ``split``."""
    return [(0, split), (split, dim)] if split else [(0, dim)]


@triton.jit
def round_half_even(x):  # type: ignore[no-untyped-def]
    """Nearest integer of an fp32 value of magnitude below 2**22."""
    # fp32 has no fraction bits left at 1.5 * 2**23, so the addition rounds.
    return (x + 12582912.0) - 12582912.0


@triton.jit
def row_scale(x):  # type: ignore[no-untyped-def]
    """Scale of an fp32 row: max|x| / 127; 1 where that is zero, NaN where the row is not finite."""
    # The maximum drops NaN; the difference does not.
    scale = tl.div_rn(tl.max(tl.abs(x), axis=0), 127.0) + tl.sum(x - x, axis=0)
    return tl.where(scale == 0.0, 1.0, scale)


@triton.jit
def to_int8(x, scale):  # type: ignore[no-untyped-def]
    """Quantize fp32 values: the correctly rounded quotient, then the nearest integer."""
    return tl.clamp(round_half_even(tl.div_rn(x, scale)), -127.0, 127.0).to(tl.int8)


@triton.jit
def _quantize_rows_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    values_ptr,
    scale_ptr,
    x_batch_stride,
    x_row_stride,
    values_row_stride,
    seq_len,
    dim,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // seq_len, row % seq_len
    cols = tl.arange(0, BLOCK)
    mask = cols < dim

    x_row = x_ptr + batch * x_batch_stride + token * x_row_stride
    x = tl.load(x_row + cols, mask=mask, other=0.0).to(tl.float32)
    scale = row_scale(x)
    tl.store(values_ptr + row * values_row_stride + cols, to_int8(x, scale), mask=mask)
    tl.store(scale_ptr + row, scale)


def _launch_quantize(x: Tensor, split: int = 0) -> tuple[Tensor, Tensor]:
    _check_quantize(x, split)
    values, scales = _new_rows(x, split)
    if x.stride(-1) != 1:
        x = x.contiguous()
    batch, seq_len, dim = x.shape
    for scale, (start, stop) in zip(scales, k_ranges(dim, split), strict=True):
        launch(
            _quantize_rows_kernel,
            (batch * seq_len,),
            x[..., start:],
            values[..., start:],
            scale,
            x.stride(0),
            x.stride(1),
            dim,
            seq_len,
            stop - start,
            BLOCK=triton.next_power_of_2(stop - start),
            **settings("quantize_rows", x.device),
        )
    return values, scales


@torch.library.custom_op("isoframe::quantize_rows", mutates_args=(), device_types="cpu")
def quantize_rows(x: Tensor, split: int = 0) -> tuple[Tensor, Tensor]:
    """Quantize each token to int8, with one scale for each of its K ranges.

    Args:
        x: tokens ``[B, M, K]``, any strides with contiguous channels; fp32, fp16 or bf16; a range has at most 16384
            channels.
        split: first channel of the second range; 0 for a single range.

    Returns:
        ``(values, row_scale)``: int8 ``[B, M, K]`` in [-127, 127] and fp32 ``[R, B, M]`` with R ranges, 1 or 2, both
        contiguous. A range of zeros has scale 1; a range that is not finite has a scale that is not finite.
    """
    _check_quantize(x, split)
    values, scales = _new_rows(x, split)
    for scale, (start, stop) in zip(scales, k_ranges(x.shape[-1], split), strict=True):
        part = x[..., start:stop].float()
        torch.maximum(part.amax(-1), part.amin(-1).neg_(), out=scale)
        scale.div_(127).masked_fill_(scale == 0, 1.0)
        values[..., start:stop] = (part / scale.unsqueeze(-1)).round_()
    return values, scales


quantize_rows.register_kernel("cuda")(_launch_quantize)


@quantize_rows.register_fake
def _(x: Tensor, split: int = 0) -> tuple[Tensor, Tensor]:
    _check_quantize(x, split)
    return _new_rows(x, split)


def _new_rows(x: Tensor, split: int) -> tuple[Tensor, Tensor]:
    values = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale_shape = (2 if split else 1, *x.shape[:2])
    return values, torch.empty(scale_shape, dtype=torch.float32, device=x.device)


def _check_quantize(x: Tensor, split: int) -> None:
    if x.ndim != 3:
        raise ValueError(f"x must be [B, M, K], got {tuple(x.shape)}")
    check_split(split, x.shape[2])
    if max(stop - start for start, stop in k_ranges(x.shape[2], split)) > _MAX_RANGE:
        raise ValueError(f"a range of x must have at most {_MAX_RANGE} channels, got {x.shape[2]}; see split")
    check_dtype("x", x)


def check_split(split: int, dim: int) -> None:
    if not 0 <= split < dim:
        raise ValueError(f"split must be 0 or a channel below K = {dim}, got {split}")


def dequantize_unit_reference(values: Tensor, scale: Tensor, out: Tensor) -> None:
    out.copy_(values.float() * scale.unsqueeze(1))


@triton.jit
def _dequantize_unit_kernel(  # type: ignore[no-untyped-def]
    values_ptr,
    scale_ptr,
    out_ptr,
    values_row_stride,
    out_row_stride,
    dim,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < dim
    values = tl.load(values_ptr + row * values_row_stride + cols, mask=mask, other=0)
    y = values.to(tl.float32) * tl.load(scale_ptr + row)
    tl.store(out_ptr + row * out_row_stride + cols, y.to(out_ptr.dtype.element_ty), mask=mask)


def _launch_dequantize(values: Tensor, scale: Tensor, out: Tensor) -> None:
    _check_dequantize(values, scale, out)
    num_rows, dim = values.shape
    options = settings("dequantize_unit", values.device)
    launch(
        _dequantize_unit_kernel,
        (num_rows, triton.cdiv(dim, options["BLOCK"])),
        values,
        scale.contiguous(),
        out,
        values.stride(0),
        out.stride(0),
        dim,
        **options,
    )


def _check_dequantize(values: Tensor, scale: Tensor, out: Tensor) -> None:
    if values.ndim != 2:
        raise ValueError(f"values must be [N, K], got {tuple(values.shape)}")
    check_shape("scale", scale, "[N]", (values.shape[0],))
    check_shape("out", out, "[N, K]", tuple(values.shape))
    check_dtype("values", values, (torch.int8,))
    check_dtype("scale", scale, (torch.float32,))
    check_dtype("out", out)
    for name, tensor in (("values", values), ("out", out)):
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous along K, got strides {tensor.stride()}")
    check_same_device(values=values, scale=scale, out=out)


@torch.library.custom_op("isoframe::dequantize_unit", mutates_args=("out",), device_types="cpu")
def dequantize_unit(values: Tensor, scale: Tensor, out: Tensor) -> None:
    """Expand an int8 weight for a matrix product in floating point.

    Args:
        values: int8 weight ``[N, K]``, contiguous along K.
        scale: fp32 scale of each row ``[N]``.
        out: ``[N, K]``, fp32, fp16 or bf16, contiguous along K; written. One rounding, to its dtype.
    """
    _check_dequantize(values, scale, out)
    torch.mul(values, scale.unsqueeze(1), out=out)


dequantize_unit.register_kernel("cuda")(_launch_dequantize)
dequantize_unit.register_fake(_check_dequantize)


def _make_rows(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, num_rows, dim, split = shape
    x = torch.randn(batch, num_rows, dim, device=device)
    x[:, -1] = 0
    return x.to(dtype), split


def _make_unit(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    values = torch.randint(-127, 128, shape, dtype=torch.int8, device=device)
    scale = torch.rand(shape[0], device=device) * 0.01
    return values, scale, torch.full(shape, torch.nan, dtype=dtype, device=device)


register(
    KernelSpec(
        name="quantize_rows",
        formula="row_scale = max|x| / 127 of each K range, values = round(x / row_scale)",
        fuses="cast to fp32, absolute maximum, division, rounding, cast to int8, concatenation of two ranges",
        exactness="approximate",
        op=quantize_rows,
        reference=quantize_rows_reference,
        launch=_launch_quantize,
        make_inputs=_make_rows,
        # batch, rows, channels, split
        test_shapes=((1, 1, 8, 0), (1, 63, 96, 32), (2, 5, 3072, 0), (2, 7, 119, 40)),
        # The attention output, the MLP's hidden rows, and both side by side.
        bench_shapes=((1, 18261, 3072, 0), (1, 18261, 12288, 0), (1, 18261, 15360, 3072)),
        max_error={torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6},
        strided=(0,),
    )
)

register(
    KernelSpec(
        name="dequantize_unit",
        formula="out = values * scale of each row",
        fuses="cast to fp32, multiplication, cast back",
        exactness="rounding",
        op=dequantize_unit,
        reference=dequantize_unit_reference,
        launch=_launch_dequantize,
        make_inputs=_make_unit,
        test_shapes=((1, 8), (63, 96), (5, 3072), (3, 2049)),
        bench_shapes=((9216, 3072), (3072, 12288), (21504, 3072), (3072, 15360)),
        max_error={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 3e-3},
        mutates=(2,),
    )
)
