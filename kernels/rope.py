"""RMSNorm of q and k per head, then rotary embedding of the latent tokens.

``y = x / sqrt(mean(x^2) + eps) * weight`` and, for adjacent channels (a, b) of a latent token,
``(a, b) -> (a cos - b sin, b cos + a sin)``. Pooled tables are not unit length and also shrink the pair.
"""

from typing import Any

import torch
from torch import Tensor

from ._registry import KernelSpec, Shape, register

_CHUNK_BYTES = 2**20


def qk_norm_rope_reference(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-6
) -> Tensor:
    num_latent_tokens = cos.shape[0]
    is_condition = (torch.arange(qkv.shape[1], device=qkv.device) >= num_latent_tokens).long()
    outputs = []
    for x, weight in ((qkv[:, :, 0], q_weight), (qkv[:, :, 1], k_weight)):
        normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        normed = normed * weight.float()[is_condition].unsqueeze(1)
        a, b = normed[:, :num_latent_tokens].unflatten(-1, (-1, 2)).unbind(-1)
        c, s = cos.unsqueeze(1), sin.unsqueeze(1)
        rotated = torch.stack((a * c - b * s, b * c + a * s), dim=-1).flatten(-2)
        outputs.append(torch.cat((rotated, normed[:, num_latent_tokens:]), dim=1).to(qkv.dtype))
    return torch.stack(outputs)


@torch.library.custom_op("isoframe::qk_norm_rope", mutates_args=())
def qk_norm_rope(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-6
) -> Tensor:
    """Normalize q and k of a fused projection and rotate the latent tokens, the first M rows.

    Args:
        qkv: fused projection ``[B, N, 3, H, K]``, latent tokens first; fp32, fp16 or bf16.
        q_weight: norm weights ``[2, K]`` of q: row 0 for latent tokens, row 1 for condition tokens.
        k_weight: the same for k.
        cos: ``[M, K/2]`` fp32, M at most N, one value for each pair of adjacent channels.
        sin: ``[M, K/2]`` fp32.
        eps: added to the mean square.

    Returns:
        ``[2, B, N, H, K]`` in ``qkv.dtype``, q then k; computed in fp32 and rounded once.
    """
    _check(qkv, q_weight, k_weight, cos, sin)
    num_tokens, num_latent_tokens = qkv.shape[1], cos.shape[0]
    rotation = torch.complex(cos, sin).unsqueeze(1)
    out = qkv.new_empty((2, *qkv.shape[:2], *qkv.shape[3:]))
    for part, weight in enumerate((q_weight.float(), k_weight.float())):
        for rows in _row_chunks(qkv, num_latent_tokens, num_tokens):
            x = qkv[:, rows, part].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            rstd = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            rstd = rstd.square_().div_(qkv.shape[-1]).add_(eps).rsqrt_()
            is_latent = rows.start < num_latent_tokens
            x.mul_(rstd).mul_(weight[0 if is_latent else 1])
            if is_latent:
                torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(rotation[rows])
            out[part, :, rows] = x
    return out


def _row_chunks(qkv: Tensor, num_latent_tokens: int, num_tokens: int) -> list[slice]:
    """Rows in groups whose fp32 copy stays in the CPU's cache; none holds both kinds of tokens."""
    row_bytes = 4 * qkv.shape[0] * qkv.shape[3] * qkv.shape[4]
    step = max(_CHUNK_BYTES // row_bytes, 1) if qkv.device.type == "cpu" else num_tokens
    latent = [slice(i, min(i + step, num_latent_tokens)) for i in range(0, num_latent_tokens, step)]
    return latent + [slice(i, min(i + step, num_tokens)) for i in range(num_latent_tokens, num_tokens, step)]


@qk_norm_rope.register_fake
def _(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-6) -> Tensor:
    _check(qkv, q_weight, k_weight, cos, sin)
    return qkv.new_empty((2, *qkv.shape[:2], *qkv.shape[3:]))


def _check(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor) -> None:
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must be [B, N, 3, H, K], got {tuple(qkv.shape)}")
    num_tokens, head_dim = qkv.shape[1], qkv.shape[-1]
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight.shape != (2, head_dim):
            raise ValueError(f"{name} must be [2, K] = {(2, head_dim)}, got {tuple(weight.shape)}")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, got {table.dtype}")
        if table.shape != cos.shape or table.ndim != 2 or table.shape[1] * 2 != head_dim:
            raise ValueError(f"{name} must be [M, K/2] with K = {head_dim}, got {tuple(table.shape)}")
    if cos.shape[0] > num_tokens:
        raise ValueError(f"cos must have at most N = {num_tokens} rows, got {cos.shape[0]}")


def _make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, num_tokens, num_latent_tokens, num_heads, head_dim = shape
    qkv = torch.randn(batch, num_tokens, 3, num_heads, head_dim, device=device).to(dtype)
    q_weight, k_weight = ((torch.randn(2, head_dim, device=device) + 1).to(dtype) for _ in range(2))
    angle = torch.rand(num_latent_tokens, head_dim // 2, device=device) * 50
    return qkv, q_weight, k_weight, angle.cos() * 0.9, angle.sin() * 0.9


register(
    KernelSpec(
        name="qk_norm_rope",
        formula="q, k: x / sqrt(mean(x^2) + eps) * weight, then (a, b) -> (a cos - b sin, b cos + a sin) for latent tokens",
        fuses="RMSNorm of q and k, split into pairs, rotation, stacking, concatenation with the text rows, casts",
        exactness="rounding",
        op=qk_norm_rope,
        reference=qk_norm_rope_reference,
        make_inputs=_make_inputs,
        # batch, tokens, latent tokens, heads, head dim
        # The last one takes more than one chunk of rows on the CPU.
        test_shapes=((1, 3, 3, 1, 8), (2, 7, 5, 3, 64), (1, 9, 0, 2, 128), (1, 203, 150, 12, 128)),
        bench_shapes=((1, 18255, 17226, 24, 128),),
        max_error={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 3e-3},
    )
)
