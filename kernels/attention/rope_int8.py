"""q and k after RMSNorm and rotary embedding, as int8 blocks for the attention.

q carries the softmax scale, ``log2(e) / sqrt(K)``; from k a fixed vector per head is subtracted, which adds the same
number to all scores of a query and so leaves the softmax as it is. Blocks of 128 rows of q and 64 rows of k have one
scale each: ``scale = max|block| / 127``, ``value = round(x / scale)``.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ..launching.checks import check_dtype, check_same_device, check_shape
from ..launching.kernel_specs import KernelSpec, Shape, register
from ..launching.launch import launch, settings
from ..launching.triton_import import tl, triton
from ..linear.quantize import to_int8
from .rope import check_qk, make_qk_inputs, normed_tile, qk_norm_rope, rotary_tile, rotate, rotated_fp32

# Rows that share a scale.
Q_BLOCK, K_BLOCK = 128, 64

Int8Blocks = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def qk_norm_rope_int8_reference(
    qk: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_mean: Tensor,
    eps: float = 1e-6,
) -> Int8Blocks:
    return _quantize(rotated_fp32(qk, q_weight, k_weight, cos, sin, eps), k_mean)


def _quantize(rotated: Tensor, k_mean: Tensor) -> Int8Blocks:
    """Int8 blocks of ``rotated`` [2, B, N, H, K] fp32."""
    q, k = rotated
    q8, q_scale = _quantize_blocks(q * _softmax_scale(q.shape[-1]), Q_BLOCK)
    k8, k_scale = _quantize_blocks(k - k_mean, K_BLOCK)
    return q8, q_scale, k8, k_scale, k.mean(dim=(0, 1))


def _softmax_scale(head_dim: int) -> float:
    return math.log2(math.e) / math.sqrt(head_dim)


def _quantize_blocks(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Values [B, N, H, K] int8 and scales [B, H, ceil(N / block)] of x [B, N, H, K]."""
    num_tokens = x.shape[1]
    blocks = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -num_tokens % block)).unflatten(1, (-1, block))
    scale = blocks.abs().amax(dim=(2, 4)) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    values = (blocks / scale[:, :, None, :, None]).round().to(torch.int8)
    values, scale = values.flatten(1, 2)[:, :num_tokens], scale.transpose(1, 2)
    # A clone has the strides of new memory even along dimensions of size 1.
    as_new = torch.contiguous_format
    return values.clone(memory_format=as_new), scale.clone(memory_format=as_new)


@triton.jit
def _qk_norm_rope_int8_kernel(  # type: ignore[no-untyped-def]
    qk_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_ptr,
    sin_ptr,
    k_mean_ptr,
    q_ptr,
    q_scale_ptr,
    k_ptr,
    k_scale_ptr,
    partial_ptr,
    qk_batch_stride,
    qk_row_stride,
    qk_part_stride,
    qk_head_stride,
    num_tokens,
    num_latent_tokens,
    num_heads,
    eps,
    softmax_scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_KEY: tl.constexpr,
):
    head = tl.program_id(0)
    block = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    cols = tl.arange(0, BLOCK_K)
    mask = (tokens < num_tokens)[:, None] & (cols < HEAD_DIM)[None, :]

    x_ptr = qk_ptr + batch * qk_batch_stride + (1 if IS_KEY else 0) * qk_part_stride + head * qk_head_stride
    weight_ptr = k_weight_ptr if IS_KEY else q_weight_ptr
    x = normed_tile(
        x_ptr, qk_row_stride, weight_ptr, tokens, num_tokens, num_latent_tokens, eps, HEAD_DIM, BLOCK_K
    )
    cos, sin = rotary_tile(cos_ptr, sin_ptr, tokens, num_latent_tokens, HEAD_DIM, BLOCK_K)
    y = rotate(x, cos, sin, BLOCK, BLOCK_K)
    if IS_KEY:
        partial = (batch * tl.num_programs(1) + block) * num_heads + head
        tl.store(partial_ptr + partial * HEAD_DIM + cols, tl.sum(y, axis=0), mask=cols < HEAD_DIM)
        mean = tl.load(k_mean_ptr + head * HEAD_DIM + cols, mask=cols < HEAD_DIM, other=0.0)
        # Rows past the end would hold -mean and enter the scale.
        y = tl.where(mask, y - mean[None, :], 0.0)
        values_ptr, scale_ptr = k_ptr, k_scale_ptr
    else:
        y *= softmax_scale
        values_ptr, scale_ptr = q_ptr, q_scale_ptr

    # The maximum drops NaN; the difference does not.
    scale = tl.div_rn(tl.max(tl.abs(y)), 127.0) + tl.sum(y - y)
    scale = tl.where(scale == 0.0, 1.0, scale)
    tl.store(scale_ptr + (batch * num_heads + head) * tl.num_programs(1) + block, scale)
    rows = (batch * num_tokens + tokens) * num_heads + head
    tl.store(values_ptr + rows[:, None] * HEAD_DIM + cols[None, :], to_int8(y, scale), mask=mask)


@triton.jit
def _mean_kernel(partial_ptr, mean_ptr, num_partials, num_rows, dim, BLOCK: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    # A fixed order: the same tensors always give the same mean.
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    total = tl.zeros((BLOCK, COLS), tl.float32)
    for start in range(0, num_partials, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        mask = (rows < num_partials)[:, None] & (cols < dim)[None, :]
        total += tl.load(partial_ptr + rows.to(tl.int64)[:, None] * dim + cols[None, :], mask=mask, other=0.0)
    tl.store(mean_ptr + cols, tl.div_rn(tl.sum(total, axis=0), num_rows), mask=cols < dim)


def _launch(
    qk: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_mean: Tensor,
    eps: float = 1e-6,
) -> Int8Blocks:
    _check(qk, q_weight, k_weight, cos, sin, k_mean)
    batch, num_tokens, _, num_heads, head_dim = qk.shape
    if qk.stride(-1) != 1:
        qk = qk.contiguous()
    blocks = _new_blocks(qk)
    q8, q_scale, k8, k_scale, new_k_mean = blocks
    num_partials = batch * k_scale.shape[2]
    partial = torch.empty((num_partials, num_heads, head_dim), dtype=torch.float32, device=qk.device)
    inputs = [tensor.contiguous() for tensor in (q_weight, k_weight, cos, sin, k_mean)]
    for part, block, scale in (("q", Q_BLOCK, q_scale), ("k", K_BLOCK, k_scale)):
        launch(
            _qk_norm_rope_int8_kernel,
            (num_heads, scale.shape[2], batch),
            qk,
            *inputs,
            q8,
            q_scale,
            k8,
            k_scale,
            partial,
            *qk.stride()[:4],
            num_tokens,
            cos.shape[0],
            num_heads,
            eps,
            _softmax_scale(head_dim),
            HEAD_DIM=head_dim,
            BLOCK_K=triton.next_power_of_2(head_dim),
            BLOCK=block,
            IS_KEY=part == "k",
            **settings(f"qk_norm_rope_int8_{part}", qk.device),
        )
    _launch_mean(partial, new_k_mean, batch * num_tokens)
    return blocks


def _launch_mean(partial: Tensor, mean: Tensor, num_rows: int) -> None:
    options = settings("qk_norm_rope_int8_mean", partial.device)
    launch(
        _mean_kernel,
        (triton.cdiv(mean.numel(), options["COLS"]),),
        partial,
        mean,
        partial.shape[0],
        float(num_rows),
        mean.numel(),
        **options,
    )


@torch.library.custom_op("isoframe::qk_norm_rope_int8", mutates_args=(), device_types="cpu")
def qk_norm_rope_int8(
    qk: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_mean: Tensor,
    eps: float = 1e-6,
) -> Int8Blocks:
    """Normalize q and k of a fused projection, rotate the latent tokens and quantize both for int8 attention.

    Args:
        qk: q and k ``[B, N, 2, H, K]`` as :func:`qk_norm_rope` takes them; N at least 1.
        q_weight: norm weights ``[2, K]`` of q: row 0 for latent tokens, row 1 for condition tokens.
        k_weight: the same for k.
        cos: ``[M, K/2]`` fp32, M at most N.
        sin: ``[M, K/2]`` fp32.
        k_mean: what is subtracted from every k of a head ``[H, K]`` fp32; the closer to the mean of k, the smaller the
            error. Any value is correct; the step before has a good one.
        eps: added to the mean square.

    Returns:
        ``(q8, q_scale, k8, k_scale, new_k_mean)``, contiguous: int8 ``[B, N, H, K]`` in [-127, 127] with fp32 scales
        ``[B, H, ceil(N / 128)]`` for q and ``[B, H, ceil(N / 64)]`` for k. ``log2(e) / sqrt(K)`` is folded into q.
        new_k_mean is the mean of k over all samples and tokens, before anything is subtracted: ``[H, K]`` fp32.
        A block of zeros has scale 1; one that is not finite has a scale that is not finite.
    """
    _check(qk, q_weight, k_weight, cos, sin, k_mean)
    blocks = _quantize(qk_norm_rope(qk.float(), q_weight, k_weight, cos, sin, eps), k_mean)
    return blocks


qk_norm_rope_int8.register_kernel("cuda")(_launch)


@qk_norm_rope_int8.register_fake
def _(
    qk: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_mean: Tensor,
    eps: float = 1e-6,
) -> Int8Blocks:
    _check(qk, q_weight, k_weight, cos, sin, k_mean)
    return _new_blocks(qk)


def _new_blocks(qk: Tensor) -> Int8Blocks:
    batch, num_tokens, _, num_heads, head_dim = qk.shape

    def values() -> Tensor:
        return torch.empty((batch, num_tokens, num_heads, head_dim), dtype=torch.int8, device=qk.device)

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=qk.device)

    q_scale, k_scale = (floats(batch, num_heads, triton.cdiv(num_tokens, n)) for n in (Q_BLOCK, K_BLOCK))
    return values(), q_scale, values(), k_scale, floats(num_heads, head_dim)


def _check(qk: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, k_mean: Tensor) -> None:
    check_qk(qk, q_weight, k_weight, cos, sin)
    if qk.shape[1] == 0:
        raise ValueError(f"qk must have tokens to take the mean of, got {tuple(qk.shape)}")
    check_shape("k_mean", k_mean, "[H, K]", tuple(qk.shape[3:]))
    check_dtype("k_mean", k_mean, (torch.float32,))
    check_same_device(qk=qk, k_mean=k_mean)


def _make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    qk, q_weight, k_weight, cos, sin = make_qk_inputs(shape, dtype, device)
    return qk, q_weight, k_weight, cos, sin, torch.randn(shape[3:], device=device)


register(
    KernelSpec(
        name="qk_norm_rope_int8",
        formula="q and k of qk_norm_rope; int8 blocks of log2(e) / sqrt(K) q and of k - k_mean; the mean of k",
        fuses="RMSNorm of q and k, rotation, softmax scale, K smoothing, maxima of blocks, division, rounding, mean of k",
        exactness="approximate",
        op=qk_norm_rope_int8,
        reference=qk_norm_rope_int8_reference,
        launch=_launch,
        make_inputs=_make_inputs,
        # batch, tokens, latent tokens, heads, head dim
        test_shapes=((1, 3, 3, 1, 8), (2, 65, 5, 3, 64), (1, 63, 0, 2, 128), (1, 257, 200, 2, 96)),
        bench_shapes=((1, 18255, 17226, 24, 128),),
        max_error={torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5},
        strided=(0,),
    )
)
