"""Attention on int8 queries and keys: ``out = softmax2(q_scale * k_scale * (q8 . k8)) @ v``, softmax2 with powers of 2.

Queries carry 1 / sqrt(K) * log2(e) in their scales. The softmax runs online over blocks of 64 keys. Its running
maximum is rounded up to an integer, so that rescaling multiplies by powers of two: the 8- or 16-bit rounding of the
probabilities does not depend on the blocks, and the result is that of the whole rows,

``P = 2^(S - ceil(max S))``, ``out = round(P) @ round(v / v_scale) * v_scale / sum(P)``.

``int8_attention`` rounds P and v to fp16, ``int8_attention_fp8`` to e4m3. GeForce cards accumulate in fp16 at twice the
rate of fp32, so both keep the sum over the 64 keys of a block below its largest number, 65504, and add it to an fp32
accumulator: with P at most 1, ``v_scale`` is the power of two that brings max|v| of a channel to 1023 or less, and 1
nearly always; e4m3 uses P at most 256 and max|v| of each channel at 3.75.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..launching.checks import check_dtype, check_same_device, check_shape
from ..launching.kernel_specs import KernelSpec, Shape, register
from ..launching.launch import launch, settings
from ..launching.triton_import import tl, triton
from ..linear.int8_product import int8_product

QUERY_BLOCK = 128
KEY_BLOCK = 64
_HEAD_DIMS = (64, 128)
# 64 keys * 1023 < 65504
_FP16_MAX_VALUE = 1023.0
# 64 keys * 256 * 3.75 < 65504; both are powers of two or e4m3 numbers, and P can use 15 octaves above the subnormals.
_FP8_MAX_VALUE = 3.75
_FP8_SHIFT = 8
# Turing's and Ampere's tensor cores have no fp8.
_FP8_CAPABILITY = (8, 9)


def _reference(
    dtype: torch.dtype,
    q8: Tensor,
    q_scale: Tensor,
    k8: Tensor,
    k_scale: Tensor,
    v: Tensor,
    out: Tensor,
    first_query: int,
) -> None:
    queries = torch.arange(first_query, first_query + out.shape[1], device=out.device)
    keys = torch.arange(k8.shape[1], device=out.device)
    value_scale = _value_scale(v, dtype)
    values = (v.float() / value_scale.unsqueeze(1)).to(dtype).double()
    for batch in range(q8.shape[0]):
        for head in range(q8.shape[2]):
            # fp64 holds the int32 product exactly.
            product = q8[batch, queries, head].double() @ k8[batch, :, head].double().T
            scale = q_scale[batch, head, queries // QUERY_BLOCK].unsqueeze(1)
            scores = product.float() * (scale * k_scale[batch, head, keys // KEY_BLOCK])
            p = torch.exp2(scores - scores.amax(-1, keepdim=True).ceil() + _shift(dtype))
            y = p.to(dtype).double() @ values[batch, :, head] * value_scale[batch, head]
            out[batch, :, head] = y / p.double().sum(-1, keepdim=True)


def _shift(dtype: torch.dtype) -> int:
    """log2 of the largest probability before it is rounded to fp16 or e4m3."""
    return 0 if dtype == torch.float16 else _FP8_SHIFT


def _value_scale(v: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 divisors ``[B, H, K]`` of the values."""
    largest = torch.linalg.vector_norm(v, torch.inf, dim=1).float()
    if dtype == torch.float16:
        return torch.exp2(torch.log2(largest / _FP16_MAX_VALUE).ceil_().clamp_(min=0))
    return torch.where(largest == 0, 1.0, largest / _FP8_MAX_VALUE)


@triton.jit
def _pack_values_kernel(  # type: ignore[no-untyped-def]
    v_ptr,
    scale_ptr,
    packed_ptr,
    v_batch_stride,
    v_row_stride,
    v_head_stride,
    packed_head_stride,
    packed_key_stride,
    packed_channel_stride,
    num_keys,
    num_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    keys = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channels = tl.arange(0, HEAD_DIM)
    v_head = v_ptr + head // num_heads * v_batch_stride + head % num_heads * v_head_stride
    v = tl.load(
        v_head + keys[:, None] * v_row_stride + channels[None, :],
        mask=keys[:, None] < num_keys,
        other=0.0,
    )
    scale = tl.load(scale_ptr + head * HEAD_DIM + channels)
    packed = packed_ptr + head * packed_head_stride
    packed += keys[:, None] * packed_key_stride + channels[None, :] * packed_channel_stride
    # Rows past the last key are zero: their probability is, and 0 * NaN would not be.
    v = _narrow(tl.div_rn(v.to(tl.float32), scale[None, :]), packed_ptr.dtype.element_ty, ROUND_FIRST)
    tl.store(packed, v)


@triton.jit
def _narrow(x, dtype: tl.constexpr, ROUND_FIRST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Round fp32 to fp16 or e4m3; with ROUND_FIRST to a number of e4m3, for a cast that truncates."""
    if ROUND_FIRST:
        # Four digits, and below the normal numbers, under 2^-6, multiples of 2^-9.
        spread = x * 1048577.0
        x = tl.where(tl.abs(x) < 0.015625, (x + 24576.0) - 24576.0, spread - (spread - x))
    return x.to(dtype)


@triton.jit
def _add_keys(  # type: ignore[no-untyped-def]
    q,
    q_scale,
    k_head,
    k_scale_head,
    v_head,
    block,
    k_row_stride,
    v_key_stride,
    v_channel_stride,
    num_keys,
    acc,
    total,
    peak,
    SHIFT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HALF_SUMS: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Add one block of keys to the weighted values, the sum of the weights, and the maximum of the scores."""
    channels = tl.arange(0, HEAD_DIM)
    keys = tl.arange(0, BLOCK_N)
    first_key = tl.cast(block, tl.int64) * BLOCK_N
    k_rows = tl.minimum(keys, num_keys - 1 - block * BLOCK_N) if RAGGED else keys
    k = tl.load(k_head + first_key * k_row_stride + channels[:, None] + k_rows[None, :] * k_row_stride)
    scale = q_scale * tl.load(k_scale_head + block)
    scores = tl.dot(q, k, out_dtype=tl.int32).to(tl.float32)
    if RAGGED:
        scores = tl.where((keys < num_keys - block * BLOCK_N)[None, :], scores, float("-inf"))

    new_peak = tl.maximum(peak, tl.ceil(tl.max(scores, axis=1) * scale))
    p = tl.exp2(scores * scale[:, None] - (new_peak - SHIFT)[:, None])
    rescale = tl.exp2(peak - new_peak)
    total = total * rescale + tl.sum(p, axis=1)
    acc = acc * rescale[:, None]
    v = tl.load(
        v_head
        + first_key * v_key_stride
        + keys[:, None] * v_key_stride
        + channels[None, :] * v_channel_stride
    )
    p = _narrow(p, v.dtype, ROUND_FIRST)
    if HALF_SUMS:
        acc += tl.dot(p, v, out_dtype=tl.float16).to(tl.float32)
    else:
        # Hopper's fp8 accumulator has 14 digits; it too is emptied after each block.
        acc = tl.dot(p, v, acc, max_num_imprecise_acc=BLOCK_N)
    return acc, total, new_peak


@triton.jit
def _int8_attention_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    q_scale_ptr,
    k_ptr,
    k_scale_ptr,
    v_ptr,
    v_scale_ptr,
    out_ptr,
    row_stride,
    v_head_stride,
    v_key_stride,
    v_channel_stride,
    out_batch_stride,
    out_row_stride,
    out_head_stride,
    num_queries,
    first_query,
    num_keys,
    num_heads,
    SHIFT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    Q_SCALE_ROWS: tl.constexpr,
    HALF_SUMS: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
):
    # Programs of one head are neighbours, so that its keys and values stay in the cache.
    head_index = tl.program_id(1).to(tl.int64)
    batch, head = head_index // num_heads, head_index % num_heads
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.arange(0, HEAD_DIM)

    # Rows past the last query repeat it; only the store is masked.
    queries = first_query + tl.minimum(rows, num_queries - 1)
    offset = batch * num_keys * row_stride + head * HEAD_DIM
    q = tl.load(q_ptr + offset + queries.to(tl.int64)[:, None] * row_stride + channels[None, :])
    q_scale_head = q_scale_ptr + head_index * tl.cdiv(num_keys, Q_SCALE_ROWS)
    q_scale = tl.load(q_scale_head + queries // Q_SCALE_ROWS)
    k_head = k_ptr + offset
    k_scale_head = k_scale_ptr + head_index * tl.cdiv(num_keys, BLOCK_N)
    v_head = v_ptr + head_index * v_head_stride

    acc = tl.zeros((BLOCK_M, HEAD_DIM), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    num_full = num_keys // BLOCK_N
    for block in range(num_full):
        acc, total, peak = _add_keys(
            q, q_scale, k_head, k_scale_head, v_head, block, row_stride, v_key_stride, v_channel_stride,
            num_keys, acc, total, peak, SHIFT, HEAD_DIM, BLOCK_N, HALF_SUMS, ROUND_FIRST, False,
        )  # fmt: skip
    if num_full * BLOCK_N < num_keys:
        acc, total, peak = _add_keys(
            q, q_scale, k_head, k_scale_head, v_head, num_full, row_stride, v_key_stride, v_channel_stride,
            num_keys, acc, total, peak, SHIFT, HEAD_DIM, BLOCK_N, HALF_SUMS, ROUND_FIRST, True,
        )  # fmt: skip

    v_scale = tl.load(v_scale_ptr + head_index * HEAD_DIM + channels)
    y = acc * v_scale[None, :] / total[:, None]
    out = out_ptr + batch * out_batch_stride + head * out_head_stride
    out += rows.to(tl.int64)[:, None] * out_row_stride + channels[None, :]
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=(rows < num_queries)[:, None])


def _launch(
    dtype: torch.dtype,
    q8: Tensor,
    q_scale: Tensor,
    k8: Tensor,
    k_scale: Tensor,
    v: Tensor,
    out: Tensor,
    first_query: int,
) -> None:
    _check(q8, q_scale, k8, k_scale, v, out, first_query)
    is_fp8 = dtype == torch.float8_e4m3fn
    if is_fp8 and q8.is_cuda and torch.cuda.get_device_capability(q8.device) < _FP8_CAPABILITY:
        raise ValueError(
            f"int8_attention_fp8 needs a GPU of compute capability 8.9 or higher, got "
            f"{torch.cuda.get_device_name(q8.device)}; use int8_attention"
        )
    batch, num_keys, num_heads, head_dim = q8.shape
    num_queries = out.shape[1]
    options = dict(settings("int8_attention_fp8" if is_fp8 else "int8_attention", q8.device))
    # An fp32 result is worth the slower sums.
    options["HALF_SUMS"] &= out.dtype != torch.float32
    v_scale = _value_scale(v, dtype)
    packed = _pack_values(v, v_scale, dtype, options["ROUND_FIRST"])
    launch(
        _int8_attention_kernel,
        (triton.cdiv(num_queries, options["BLOCK_M"]), batch * num_heads),
        q8,
        q_scale,
        k8,
        k_scale,
        packed,
        v_scale,
        out,
        num_heads * head_dim,
        packed.stride(1),
        packed.stride(2),
        packed.stride(3),
        out.stride(0),
        out.stride(1),
        out.stride(2),
        num_queries,
        first_query,
        num_keys,
        num_heads,
        SHIFT=_shift(dtype),
        HEAD_DIM=head_dim,
        BLOCK_N=KEY_BLOCK,
        Q_SCALE_ROWS=QUERY_BLOCK,
        **options,
    )


def _pack_values(v: Tensor, scale: Tensor, dtype: torch.dtype, round_first: int) -> Tensor:
    """Values over their scale ``[B, H, N', K]``, N' a multiple of the key block, with zeros past N.

    The tensor cores take 8-bit operands only with the summed dimension, here the keys, contiguous.
    """
    batch, num_keys, num_heads, head_dim = v.shape
    rows = triton.cdiv(num_keys, KEY_BLOCK) * KEY_BLOCK
    if dtype == torch.float16:
        packed = torch.empty(batch, num_heads, rows, head_dim, dtype=dtype, device=v.device)
    else:
        packed = torch.empty(batch, num_heads, head_dim, rows, dtype=dtype, device=v.device).mT
    launch(
        _pack_values_kernel,
        (rows // KEY_BLOCK, batch * num_heads),
        v,
        scale,
        packed,
        v.stride(0),
        v.stride(1),
        v.stride(2),
        *packed.stride()[1:],
        num_keys,
        num_heads,
        HEAD_DIM=head_dim,
        BLOCK=KEY_BLOCK,
        ROUND_FIRST=round_first,
        **settings("pack_values", v.device),
    )
    return packed


@torch.library.custom_op("isoframe::int8_attention", mutates_args=("out",), device_types="cpu")
def int8_attention(
    q8: Tensor, q_scale: Tensor, k8: Tensor, k_scale: Tensor, v: Tensor, out: Tensor, first_query: int
) -> None:
    """Attention of some queries over all keys, with int8 scores and fp16 probabilities and values.

    Args:
        q8: int8 queries ``[B, N, H, K]``, contiguous; K is 64 or 128.
        q_scale: fp32 ``[B, H, ceil(N/128)]``, a positive scale for 128 rows, with 1/sqrt(K) * log2(e) in it.
        k8: int8 keys ``[B, N, H, K]``, contiguous.
        k_scale: fp32 ``[B, H, ceil(N/64)]``, a positive scale for 64 rows.
        v: values ``[B, N, H, K]``, any strides with contiguous channels; fp32, fp16 or bf16.
        out: ``[B, M, H, K]``, any strides with contiguous channels; written. One rounding from fp32.
        first_query: row of the first of the M queries.
    """
    _attend(torch.float16, q8, q_scale, k8, k_scale, v, out, first_query)


@torch.library.custom_op("isoframe::int8_attention_fp8", mutates_args=("out",), device_types="cpu")
def int8_attention_fp8(
    q8: Tensor, q_scale: Tensor, k8: Tensor, k_scale: Tensor, v: Tensor, out: Tensor, first_query: int
) -> None:
    """:func:`int8_attention` with probabilities and values in e4m3, values with a scale for each channel.

    Needs compute capability 8.9 or higher on a GPU.
    """
    _attend(torch.float8_e4m3fn, q8, q_scale, k8, k_scale, v, out, first_query)


def _attend(
    dtype: torch.dtype,
    q8: Tensor,
    q_scale: Tensor,
    k8: Tensor,
    k_scale: Tensor,
    v: Tensor,
    out: Tensor,
    first_query: int,
) -> None:
    """The CPU path: 128 queries of one head at a time, whose scores stay in the cache."""
    _check(q8, q_scale, k8, k_scale, v, out, first_query)
    v_scale = _value_scale(v, dtype)
    key_scale = k_scale.repeat_interleave(KEY_BLOCK, dim=2)[..., : k8.shape[1]]
    stop_query = first_query + out.shape[1]
    for batch in range(q8.shape[0]):
        for head in range(q8.shape[2]):
            values = v[batch, :, head].float().div(v_scale[batch, head]).to(dtype).float()
            for block in range(first_query // QUERY_BLOCK, -(-stop_query // QUERY_BLOCK)):
                start = max(block * QUERY_BLOCK, first_query)
                stop = min((block + 1) * QUERY_BLOCK, stop_query)
                scores = int8_product(q8[batch, start:stop, head], k8[batch, :, head])
                scores.mul_(q_scale[batch, head, block] * key_scale[batch, head])
                p = scores.sub_(scores.amax(-1, keepdim=True).ceil_().sub_(_shift(dtype))).exp2_()
                y = (p.to(dtype).float() @ values).mul_(v_scale[batch, head])
                out[batch, start - first_query : stop - first_query, head] = y.div_(p.sum(-1, keepdim=True))


_launch_fp16 = partial(_launch, torch.float16)
_launch_fp8 = partial(_launch, torch.float8_e4m3fn)
int8_attention.register_kernel("cuda")(_launch_fp16)
int8_attention_fp8.register_kernel("cuda")(_launch_fp8)


@int8_attention.register_fake
@int8_attention_fp8.register_fake
def _check(
    q8: Tensor, q_scale: Tensor, k8: Tensor, k_scale: Tensor, v: Tensor, out: Tensor, first_query: int
) -> None:
    if q8.ndim != 4 or q8.shape[-1] not in _HEAD_DIMS:
        raise ValueError(f"q8 must be [B, N, H, K] with K in {_HEAD_DIMS}, got {tuple(q8.shape)}")
    batch, num_keys, num_heads, head_dim = q8.shape
    check_shape("q_scale", q_scale, "[B, H, ceil(N/128)]", (batch, num_heads, -(-num_keys // QUERY_BLOCK)))
    check_shape("k8", k8, "[B, N, H, K]", tuple(q8.shape))
    check_shape("k_scale", k_scale, "[B, H, ceil(N/64)]", (batch, num_heads, -(-num_keys // KEY_BLOCK)))
    check_shape("v", v, "[B, N, H, K]", tuple(q8.shape))
    if out.ndim != 4 or (out.shape[0], *out.shape[2:]) != (batch, num_heads, head_dim):
        raise ValueError(
            f"out must be [B, M, H, K] with B, H, K = {(batch, num_heads, head_dim)}, got {tuple(out.shape)}"
        )
    if not 0 <= first_query <= num_keys - out.shape[1]:
        raise ValueError(f"first_query must be 0 to N - M = {num_keys - out.shape[1]}, got {first_query}")
    for name, tensor in (("q8", q8), ("k8", k8)):
        check_dtype(name, tensor, (torch.int8,))
    for name, tensor in (("q_scale", q_scale), ("k_scale", k_scale)):
        check_dtype(name, tensor, (torch.float32,))
    for name, tensor in (("v", v), ("out", out)):
        check_dtype(name, tensor)
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must have contiguous channels, got strides {tensor.stride()}")
    quantized = {"q8": q8, "q_scale": q_scale, "k8": k8, "k_scale": k_scale}
    for name, tensor in quantized.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
    check_same_device(**quantized, v=v, out=out)


def _make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, num_keys, num_heads, head_dim, first_query, num_queries = shape
    full = (batch, num_keys, num_heads, head_dim)
    q8, k8 = (torch.randn(full, device=device).mul_(40).clamp_(-127, 127).to(torch.int8) for _ in range(2))
    # Scores with a standard deviation of about 1.5.
    q_scale, k_scale = (
        (torch.rand(batch, num_heads, -(-num_keys // rows), device=device) + 0.5) / 40 * size
        for rows, size in ((QUERY_BLOCK, 1.5 * head_dim**-0.5), (KEY_BLOCK, 1.0))
    )
    v = torch.randn(full, device=device).to(dtype)
    out = torch.full((batch, num_queries, *full[2:]), torch.nan, dtype=dtype, device=device)
    return q8, q_scale, k8, k_scale, v, out, first_query


_FUSES = "int32 scores, their scales, softmax, cast to {}, product with the values, scale, cast"

_SPEC = KernelSpec(
    name="int8_attention",
    formula="out = softmax2(q_scale * k_scale * (q8 . k8)) @ v, P and v in fp16",
    fuses=_FUSES.format("fp16"),
    exactness="approximate",
    op=int8_attention,
    reference=partial(_reference, torch.float16),
    launch=_launch_fp16,
    make_inputs=_make_inputs,
    # batch, keys, heads, head dim, first query, queries
    test_shapes=(
        (1, 1, 1, 64, 0, 1),
        (1, 64, 2, 64, 0, 64),
        (2, 63, 2, 128, 0, 63),
        (1, 200, 3, 64, 30, 150),
        (2, 257, 1, 128, 100, 157),
    ),
    # The packed sequence of one section at 640x608, and the noisy rows of the last block.
    bench_shapes=((1, 18261, 24, 128, 0, 18261), (1, 18261, 24, 128, 3820, 13680)),
    max_error={torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 3e-3},
    mutates=(5,),
    strided=(4, 5),
    mma={"_int8_attention_kernel": ("s8", "f16")},
)

register(_SPEC)
register(
    replace(
        _SPEC,
        name="int8_attention_fp8",
        formula="out = softmax2(q_scale * k_scale * (q8 . k8)) @ v, P and v in e4m3",
        fuses=_FUSES.format("e4m3"),
        op=int8_attention_fp8,
        reference=partial(_reference, torch.float8_e4m3fn),
        launch=_launch_fp8,
        archs=(89, 90, 120),
        mma={"_int8_attention_kernel": ("s8", "e4m3")},
    )
)
