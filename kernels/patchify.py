"""Patch embedding at one scale: cut latents into (kt, ky, kx) cells and project each cell to a token.

``token = weight . cell + bias``. Latents whose size is no multiple of the patch are padded at the far end
of each axis by replication, which is a clamped index.
"""

from typing import Any

import torch
from torch import Tensor

from ._registry import KernelSpec, Shape, register


def patchify_pack_reference(
    latents: Tensor, weight: Tensor, bias: Tensor, packed: Tensor, offset: int
) -> None:
    kernel = weight.shape[2:]
    far_ends = [n for size, k in zip(latents.shape[:1:-1], kernel[::-1], strict=True) for n in (0, -size % k)]
    padded = torch.nn.functional.pad(latents.float(), far_ends, mode="replicate")
    tokens = torch.nn.functional.conv3d(padded, weight.float(), bias.float(), stride=kernel)
    tokens = tokens.flatten(2).transpose(1, 2)
    packed[:, offset : offset + tokens.shape[1]] = tokens.to(packed.dtype)


@torch.library.custom_op("isoframe::patchify_pack", mutates_args=("packed",))
def patchify_pack(latents: Tensor, weight: Tensor, bias: Tensor, packed: Tensor, offset: int) -> None:
    """Embed the patches of one group of latent frames and write the tokens into the packed sequence.

    Args:
        latents: ``[B, C, T, Y, X]``.
        weight: ``[D, C, kt, ky, kx]``; (1,2,2) for 1x and noisy, (2,4,4) for 2x, (4,8,8) for 4x.
        bias: ``[D]``.
        packed: packed sequence ``[B, N, D]``; rows ``offset`` to ``offset + num_patches`` are written, in the
            order time, y, x.
        offset: first row to write.
    """
    _check(latents, weight, bias, packed, offset)
    kernel = weight.shape[2:]
    for dim, k in enumerate(kernel, start=2):
        size = latents.shape[dim]
        if size % k:
            clamped = torch.arange(size + -size % k, device=latents.device).clamp_(max=size - 1)
            latents = latents.index_select(dim, clamped)
    # [B, T/kt, Y/ky, X/kx, C, kt, ky, kx]
    cells = latents.unflatten(4, (-1, kernel[2])).unflatten(3, (-1, kernel[1])).unflatten(2, (-1, kernel[0]))
    cells = cells.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(1, 3).flatten(2).to(weight.dtype)
    rows = packed[:, offset : offset + cells.shape[1]]
    rows.copy_(torch.nn.functional.linear(cells, weight.flatten(1), bias))


@patchify_pack.register_fake
def _(latents: Tensor, weight: Tensor, bias: Tensor, packed: Tensor, offset: int) -> None:
    _check(latents, weight, bias, packed, offset)


def num_patches(size: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """Tokens that latents of ``size`` (T, Y, X) give with patches of ``kernel``."""
    count = 1
    for length, k in zip(size, kernel, strict=True):
        count *= -(-length // k)
    return count


def _check(latents: Tensor, weight: Tensor, bias: Tensor, packed: Tensor, offset: int) -> None:
    if latents.ndim != 5:
        raise ValueError(f"latents must be [B, C, T, Y, X], got {tuple(latents.shape)}")
    if weight.ndim != 5 or weight.shape[1] != latents.shape[1]:
        raise ValueError(f"weight must be [D, C = {latents.shape[1]}, kt, ky, kx], got {tuple(weight.shape)}")
    batch, dim = latents.shape[0], weight.shape[0]
    if bias.shape != (dim,):
        raise ValueError(f"bias must be [D] = {(dim,)}, got {tuple(bias.shape)}")
    if packed.ndim != 3 or packed.shape[0] != batch or packed.shape[2] != dim:
        raise ValueError(
            f"packed must be [B, N, D] with B = {batch} and D = {dim}, got {tuple(packed.shape)}"
        )
    end = offset + num_patches(tuple(latents.shape[2:]), tuple(weight.shape[2:]))
    if offset < 0 or end > packed.shape[1]:
        raise ValueError(f"packed must have rows {offset} to {end}, got N = {packed.shape[1]}")


def _make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, channels, frames, height, width, patch_t, patch_yx, dim = shape
    latents = torch.randn(batch, channels, frames, height, width, device=device).to(dtype)
    weight = torch.randn(dim, channels, patch_t, patch_yx, patch_yx, device=device)
    weight = (weight / weight[0].numel() ** 0.5).to(dtype)
    num_rows = num_patches((frames, height, width), (patch_t, patch_yx, patch_yx)) + 3
    packed = torch.zeros(batch, num_rows, dim, dtype=dtype, device=device)
    return latents, weight, torch.randn(dim, device=device).to(dtype), packed, 2


register(
    KernelSpec(
        name="patchify_pack",
        formula="token = weight . cell + bias over (kt, ky, kx) cells of the latents",
        fuses="replicate padding, patch embedding, flattening, concatenation into the packed sequence",
        exactness="rounding",
        op=patchify_pack,
        reference=patchify_pack_reference,
        make_inputs=_make_inputs,
        # batch, channels, frames, height, width, patch frames, patch size, token width
        test_shapes=((1, 16, 3, 6, 10, 1, 2, 24), (2, 16, 2, 11, 6, 2, 4, 8), (1, 16, 5, 6, 22, 4, 8, 40)),
        bench_shapes=(
            (1, 16, 9, 68, 88, 1, 2, 3072),
            (1, 16, 2, 68, 88, 2, 4, 3072),
            (1, 16, 16, 68, 88, 4, 8, 3072),
        ),
        max_error={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 3e-3},
        mutates=(3,),
    )
)
