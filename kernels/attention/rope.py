"""RMSNorm of q and k per head, then rotary embedding of the latent tokens.

``y = x / sqrt(mean(x^2) + eps) * weight`` and, for adjacent channels (a, b) of a latent token,
``(a, b) -> (a cos - b sin, b cos + a sin)``. Pooled tables are not unit length and also shrink the pair.
"""

from typing import Any

import torch
from torch import Tensor

from ..launching.checks import check_dtype, check_same_device
from ..launching.kernel_specs import KernelSpec, Shape, register
from ..launching.launch import launch, settings
from ..launching.triton_import import tl, triton

_CHUNK_BYTES = 2**20


def qk_norm_rope_reference(
    qk: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-6
) -> Tensor:
    return rotated_fp32(qk, q_weight, k_weight, cos, sin, eps).to(qk.dtype)


def rotated_fp32(
    qk: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> Tensor:
    """Reference before the rounding: ``[2, B, N, H, K]`` fp32."""
    num_latent_tokens = cos.shape[0]
    is_condition = (torch.arange(qk.shape[1], device=qk.device) >= num_latent_tokens).long()
    outputs = []
    for x, weight in ((qk[:, :, 0], q_weight), (qk[:, :, 1], k_weight)):
        normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        normed = normed * weight.float()[is_condition].unsqueeze(1)
        a, b = normed[:, :num_latent_tokens].unflatten(-1, (-1, 2)).unbind(-1)
        c, s = cos.unsqueeze(1), sin.unsqueeze(1)
        rotated = torch.stack((a * c - b * s, b * c + a * s), dim=-1).flatten(-2)
        outputs.append(torch.cat((rotated, normed[:, num_latent_tokens:]), dim=1))
    return torch.stack(outputs)


@triton.jit
def normed_tile(  # type: ignore[no-untyped-def]
    x_ptr,
    x_row_stride,
    weight_ptr,
    tokens,
    num_tokens,
    num_latent_tokens,
    eps,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows ``tokens`` of one head after RMSNorm, fp32 [BLOCK, BLOCK_K]; zero outside the tensor."""
    cols = tl.arange(0, BLOCK_K)
    mask = (tokens < num_tokens)[:, None] & (cols < HEAD_DIM)[None, :]
    offsets = tokens.to(tl.int64)[:, None] * x_row_stride + cols[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / HEAD_DIM + eps)
    # A load of the tile's shape: choosing between two rows would leave the layout of the tile.
    kind = (tokens >= num_latent_tokens).to(tl.int32)
    weight_offsets = kind[:, None] * HEAD_DIM + cols[None, :]
    weight = tl.load(weight_ptr + weight_offsets, mask=mask, other=0.0).to(tl.float32)
    return x * rstd[:, None] * weight


@triton.jit
def rotary_tile(  # type: ignore[no-untyped-def]
    cos_ptr, sin_ptr, tokens, num_latent_tokens, HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Cos and sin [BLOCK, BLOCK_K / 2] of rows ``tokens``; condition tokens get the identity."""
    cols = tl.arange(0, BLOCK_K // 2)
    mask = (tokens < num_latent_tokens)[:, None] & (cols < HEAD_DIM // 2)[None, :]
    offsets = tokens.to(tl.int64)[:, None] * (HEAD_DIM // 2) + cols[None, :]
    return tl.load(cos_ptr + offsets, mask=mask, other=1.0), tl.load(sin_ptr + offsets, mask=mask, other=0.0)


@triton.jit
def rotate(x, cos, sin, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rotate adjacent channels of ``x`` [BLOCK, BLOCK_K]."""
    a, b = tl.split(tl.reshape(x, (BLOCK, BLOCK_K // 2, 2)))
    return tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (BLOCK, BLOCK_K))


@triton.jit
def _qk_norm_rope_kernel(  # type: ignore[no-untyped-def]
    qk_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    qk_batch_stride,
    qk_row_stride,
    qk_part_stride,
    qk_head_stride,
    num_tokens,
    num_latent_tokens,
    num_heads,
    eps,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    batch, num_batches = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    cols = tl.arange(0, BLOCK_K)
    mask = (tokens < num_tokens)[:, None] & (cols < HEAD_DIM)[None, :]
    cos, sin = rotary_tile(cos_ptr, sin_ptr, tokens, num_latent_tokens, HEAD_DIM, BLOCK_K)

    first = tl.program_id(0) * HEADS
    for head in range(first, tl.minimum(first + HEADS, num_heads)):
        for part in tl.static_range(2):
            x_ptr = qk_ptr + batch * qk_batch_stride + part * qk_part_stride + head * qk_head_stride
            weight_ptr = q_weight_ptr if part == 0 else k_weight_ptr
            x = normed_tile(
                x_ptr,
                qk_row_stride,
                weight_ptr,
                tokens,
                num_tokens,
                num_latent_tokens,
                eps,
                HEAD_DIM,
                BLOCK_K,
            )
            y = rotate(x, cos, sin, BLOCK, BLOCK_K)
            rows = ((part * num_batches + batch) * num_tokens + tokens) * num_heads + head
            y_ptr = out_ptr + rows[:, None] * HEAD_DIM + cols[None, :]
            tl.store(y_ptr, y.to(out_ptr.dtype.element_ty), mask=mask)


def _launch(
    qk: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-6
) -> Tensor:
    check_qk(qk, q_weight, k_weight, cos, sin)
    batch, num_tokens, _, num_heads, head_dim = qk.shape
    if qk.stride(-1) != 1:
        qk = qk.contiguous()
    out = torch.empty((2, batch, num_tokens, num_heads, head_dim), dtype=qk.dtype, device=qk.device)
    options = settings("qk_norm_rope", qk.device)
    launch(
        _qk_norm_rope_kernel,
        (triton.cdiv(num_heads, options["HEADS"]), triton.cdiv(num_tokens, options["BLOCK"]), batch),
        qk,
        q_weight.contiguous(),
        k_weight.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        out,
        *qk.stride()[:4],
        num_tokens,
        cos.shape[0],
        num_heads,
        eps,
        HEAD_DIM=head_dim,
        BLOCK_K=triton.next_power_of_2(head_dim),
        **options,
    )
    return out


@torch.library.custom_op("isoframe::qk_norm_rope", mutates_args=(), device_types="cpu")
def qk_norm_rope(
    qk: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-6
) -> Tensor:
    """Normalize q and k of a fused projection and rotate the latent tokens, the first M rows.

    Args:
        qk: q and k ``[B, N, 2, H, K]``, latent tokens first, any strides with contiguous channels (a view of the
            fused projection); fp32, fp16 or bf16.
        q_weight: norm weights ``[2, K]`` of q: row 0 for latent tokens, row 1 for condition tokens.
        k_weight: the same for k.
        cos: ``[M, K/2]`` fp32, M at most N, one value for each pair of adjacent channels.
        sin: ``[M, K/2]`` fp32.
        eps: added to the mean square.

    Returns:
        ``[2, B, N, H, K]`` in ``qk.dtype``, q then k; computed in fp32 and rounded once.
    """
    check_qk(qk, q_weight, k_weight, cos, sin)
    num_tokens, num_latent_tokens = qk.shape[1], cos.shape[0]
    rotation = torch.complex(cos, sin).unsqueeze(1)
    out = torch.empty((2, *qk.shape[:2], *qk.shape[3:]), dtype=qk.dtype, device=qk.device)
    for part, weight in enumerate((q_weight.float(), k_weight.float())):
        for rows in _row_chunks(qk, num_latent_tokens, num_tokens):
            x = qk[:, rows, part].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            rstd = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            rstd = rstd.square_().div_(qk.shape[-1]).add_(eps).rsqrt_()
            is_latent = rows.start < num_latent_tokens
            x.mul_(rstd).mul_(weight[0 if is_latent else 1])
            if is_latent:
                torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(rotation[rows])
            out[part, :, rows] = x
    return out


def _row_chunks(qk: Tensor, num_latent_tokens: int, num_tokens: int) -> list[slice]:
    """Rows in groups whose fp32 copy stays in the CPU's cache; none holds both kinds of tokens."""
    row_bytes = 4 * qk.shape[0] * qk.shape[3] * qk.shape[4]
    step = max(_CHUNK_BYTES // row_bytes, 1)
    latent = [slice(i, min(i + step, num_latent_tokens)) for i in range(0, num_latent_tokens, step)]
    return latent + [slice(i, min(i + step, num_tokens)) for i in range(num_latent_tokens, num_tokens, step)]


qk_norm_rope.register_kernel("cuda")(_launch)


@qk_norm_rope.register_fake
def _(qk: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-6) -> Tensor:
    check_qk(qk, q_weight, k_weight, cos, sin)
    return qk.new_empty((2, *qk.shape[:2], *qk.shape[3:]))


def check_qk(qk: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Raise a ValueError that names the argument that does not fit."""
    if qk.ndim != 5 or qk.shape[2] != 2 or qk.shape[4] % 2:
        raise ValueError(f"qk must be [B, N, 2, H, K] with even K, got {tuple(qk.shape)}")
    num_tokens, head_dim = qk.shape[1], qk.shape[-1]
    check_dtype("qk", qk)
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight.shape != (2, head_dim):
            raise ValueError(f"{name} must be [2, K] = {(2, head_dim)}, got {tuple(weight.shape)}")
        check_dtype(name, weight)
    for name, table in (("cos", cos), ("sin", sin)):
        check_dtype(name, table, (torch.float32,))
        if table.ndim != 2 or table.shape[1] * 2 != head_dim:
            raise ValueError(f"{name} must be [M, K/2] with K = {head_dim}, got {tuple(table.shape)}")
    if cos.shape[0] > num_tokens:
        raise ValueError(f"cos must have at most N = {num_tokens} rows, got {cos.shape[0]}")
    if sin.shape != cos.shape:
        raise ValueError(f"sin must have the shape of cos {tuple(cos.shape)}, got {tuple(sin.shape)}")
    check_same_device(qk=qk, q_weight=q_weight, k_weight=k_weight, cos=cos, sin=sin)


def make_qk_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    """Inputs for (batch, tokens, latent tokens, heads, head dim); q and k are a view of a fused projection."""
    batch, num_tokens, num_latent_tokens, num_heads, head_dim = shape
    qkv = torch.randn(batch, num_tokens, 3, num_heads, head_dim, device=device).to(dtype)
    q_weight, k_weight = ((torch.randn(2, head_dim, device=device) + 1).to(dtype) for _ in range(2))
    angle = torch.rand(num_latent_tokens, head_dim // 2, device=device) * 50
    return qkv[:, :, :2], q_weight, k_weight, angle.cos() * 0.9, angle.sin() * 0.9


register(
    KernelSpec(
        name="qk_norm_rope",
        formula="q, k: x / sqrt(mean(x^2) + eps) * weight, then (a, b) -> (a cos - b sin, b cos + a sin) for latent tokens",
        fuses="RMSNorm of q and k, split into pairs, rotation, stacking, concatenation with the text rows, casts",
        exactness="rounding",
        op=qk_norm_rope,
        reference=qk_norm_rope_reference,
        launch=_launch,
        make_inputs=make_qk_inputs,
        # The last one takes more than one chunk of rows on the CPU.
        test_shapes=(
            (1, 3, 3, 1, 8),
            (2, 7, 5, 3, 64),
            (1, 9, 0, 2, 128),
            (1, 5, 4, 5, 96),
            (1, 203, 150, 12, 128),
        ),
        bench_shapes=((1, 18255, 17226, 24, 128),),
        max_error={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 3e-3},
        strided=(0,),
    )
)
