"""Patch embedding at one scale: cut latents into (kt, ky, kx) cells and project each cell to a token.

``token = weight . cell + bias``. Latents whose size is no multiple of the patch are padded at the far end
of each axis by replication, which is a clamped index. The rotary rows of the cells are written along with the tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..launching.checks import check_dtype, check_same_device
from ..launching.kernel_specs import KernelSpec, Shape, register
from ..launching.launch import launch, settings
from ..launching.triton_import import tl, triton
from .aligned_rope import (
    aligned_rope_reference,
    check_axes,
    frequency_meta,
    make_axes,
    make_rope_outputs,
    split_cells,
    write_aligned_rows,
    write_rows,
)


def patchify_pack_reference(
    latents: Tensor,
    weight: Tensor,
    bias: Tensor,
    packed: Tensor,
    offset: int,
    axes: Sequence[Tensor] | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> None:
    kernel = weight.shape[2:]
    far_ends = [n for size, k in zip(latents.shape[:1:-1], kernel[::-1], strict=True) for n in (0, -size % k)]
    padded = torch.nn.functional.pad(latents.to(weight.dtype).float(), far_ends, mode="replicate")
    tokens = torch.nn.functional.conv3d(padded, weight.float(), bias.float(), stride=kernel)
    tokens = tokens.flatten(2).transpose(1, 2)
    packed[:, offset : offset + tokens.shape[1]] = tokens.to(packed.dtype)
    if axes is not None:
        assert cos is not None
        assert sin is not None
        aligned_rope_reference(axes, cos, sin, offset, kernel[0])


@triton.jit
def _gather_cells(  # type: ignore[no-untyped-def]
    latents_ptr,
    t,
    y,
    x,
    k,
    mask,
    stride_c,
    stride_t,
    stride_y,
    stride_x,
    num_t,
    num_y,
    num_x,
    KT: tl.constexpr,
    KY: tl.constexpr,
    KX: tl.constexpr,
):
    """Elements ``k`` [BLOCK_K] of the cells (t, y, x) [BLOCK_M], in the order of the weight: channel, t, y, x."""
    channel = k // (KT * KY * KX)
    frame = tl.minimum(t[:, None] * KT + (k // (KY * KX) % KT)[None, :], num_t - 1)
    row = tl.minimum(y[:, None] * KY + (k // KX % KY)[None, :], num_y - 1)
    col = tl.minimum(x[:, None] * KX + (k % KX)[None, :], num_x - 1)
    offsets = channel.to(tl.int64)[None, :] * stride_c + frame.to(tl.int64) * stride_t
    return tl.load(latents_ptr + offsets + row * stride_y + col * stride_x, mask=mask, other=0.0)


@triton.jit
def _load_weight(weight_ptr, cols, k, dim, DEPTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Transposed tile [BLOCK_K, BLOCK_N] of the weight [dim, DEPTH]."""
    offsets = cols.to(tl.int64)[None, :] * DEPTH + k[:, None]
    return tl.load(weight_ptr + offsets, mask=(cols < dim)[None, :] & (k < DEPTH)[:, None], other=0.0)


@triton.jit
def _patchify_kernel(  # type: ignore[no-untyped-def]
    latents_ptr,
    weight_ptr,
    bias_ptr,
    packed_ptr,
    cos_t_ptr,
    cos_y_ptr,
    cos_x_ptr,
    sin_t_ptr,
    sin_y_ptr,
    sin_x_ptr,
    cos_ptr,
    sin_ptr,
    stride_b,
    stride_c,
    stride_t,
    stride_y,
    stride_x,
    packed_batch_stride,
    packed_row_stride,
    num_t,
    num_y,
    num_x,
    positions_t,
    positions_y,
    positions_x,
    offset,
    num_rows,
    dim,
    DEPTH: tl.constexpr,
    KT: tl.constexpr,
    KY: tl.constexpr,
    KX: tl.constexpr,
    WRITE_ROPE: tl.constexpr,
    FREQS_T: tl.constexpr,
    FREQS_Y: tl.constexpr,
    FREQS_X: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    cells = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t, y, x = split_cells(cells, tl.cdiv(num_y, KY), tl.cdiv(num_x, KX))
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, DEPTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        mask = (cells < num_rows)[:, None] & (k < DEPTH)[None, :]
        values = _gather_cells(
            latents_ptr + batch * stride_b,
            t,
            y,
            x,
            k,
            mask,
            stride_c,
            stride_t,
            stride_y,
            stride_x,
            num_t,
            num_y,
            num_x,
            KT,
            KY,
            KX,
        )
        weight = _load_weight(weight_ptr, cols, k, dim, DEPTH)
        total = tl.dot(values.to(weight_ptr.dtype.element_ty), weight, total, input_precision="ieee")
    total += tl.load(bias_ptr + cols, mask=cols < dim, other=0.0).to(tl.float32)[None, :]

    rows = (offset + cells).to(tl.int64)
    out = packed_ptr + batch * packed_batch_stride + rows[:, None] * packed_row_stride + cols[None, :]
    mask = (cells < num_rows)[:, None] & (cols < dim)[None, :]
    tl.store(out, total.to(packed_ptr.dtype.element_ty), mask=mask)
    if WRITE_ROPE and (tl.program_id(0) == 0 and tl.program_id(2) == 0):
        write_aligned_rows(
            cos_t_ptr,
            cos_y_ptr,
            cos_x_ptr,
            sin_t_ptr,
            sin_y_ptr,
            sin_x_ptr,
            cos_ptr,
            sin_ptr,
            rows,
            cells < num_rows,
            t,
            y,
            x,
            positions_t,
            positions_y,
            positions_x,
            FREQS_T,
            FREQS_Y,
            FREQS_X,
            KT,
            BLOCK_F,
        )


def _launch(
    latents: Tensor,
    weight: Tensor,
    bias: Tensor,
    packed: Tensor,
    offset: int,
    axes: Sequence[Tensor] | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> None:
    _check(latents, weight, bias, packed, offset, axes, cos, sin)
    size, kernel = tuple(latents.shape[2:]), tuple(weight.shape[2:])
    dim, num_rows = weight.shape[0], num_patches(size, kernel)
    options = settings("patchify_pack", packed.device)
    grid = (
        triton.cdiv(dim, options["BLOCK_N"]),
        triton.cdiv(num_rows, options["BLOCK_M"]),
        latents.shape[0],
    )
    # Without tables the kernel is compiled without what reads them.
    tables = [table.contiguous() for table in axes] if axes is not None else [None] * 6
    positions = [table.shape[0] for table in axes[:3]] if axes is not None else [0] * 3
    launch(
        _patchify_kernel,
        grid,
        latents,
        weight.contiguous(),
        bias.contiguous(),
        packed,
        *tables,
        *((None, None) if axes is None else (cos, sin)),
        *latents.stride(),
        *packed.stride()[:2],
        *size,
        *positions,
        offset,
        num_rows,
        dim,
        DEPTH=weight[0].numel(),
        KT=kernel[0],
        KY=kernel[1],
        KX=kernel[2],
        WRITE_ROPE=axes is not None,
        **(_NO_FREQUENCIES if axes is None else frequency_meta(axes)),
        **options,
    )


_NO_FREQUENCIES = {"FREQS_T": 0, "FREQS_Y": 0, "FREQS_X": 0, "BLOCK_F": 1}


# Written out because torch infers no schema for an optional list of tensors.
_SCHEMA = (
    "(Tensor latents, Tensor weight, Tensor bias, Tensor(a!) packed, SymInt offset, Tensor[]? axes=None, "
    "Tensor(b!)? cos=None, Tensor(c!)? sin=None) -> ()"
)


def _check(
    latents: Tensor,
    weight: Tensor,
    bias: Tensor,
    packed: Tensor,
    offset: int,
    axes: Sequence[Tensor] | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> None:
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
    if packed.stride(-1) != 1:
        raise ValueError(f"packed must have contiguous channels, got strides {packed.stride()}")
    end = offset + num_patches(tuple(latents.shape[2:]), tuple(weight.shape[2:]))
    if offset < 0 or end > packed.shape[1]:
        raise ValueError(f"packed must have rows {offset} to {end}, got N = {packed.shape[1]}")
    for name, tensor in (("latents", latents), ("weight", weight), ("packed", packed)):
        check_dtype(name, tensor)
    check_dtype("bias", bias, (weight.dtype,))
    check_same_device(packed=packed, latents=latents, weight=weight, bias=bias, cos=cos, sin=sin)
    if axes is not None:
        _check_rope(latents, weight, offset, axes, cos, sin)


@torch.library.custom_op(
    "isoframe::patchify_pack", mutates_args=("packed", "cos", "sin"), device_types="cpu", schema=_SCHEMA
)
def patchify_pack(
    latents: Tensor,
    weight: Tensor,
    bias: Tensor,
    packed: Tensor,
    offset: int,
    axes: Sequence[Tensor] | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> None:
    """Embed the patches of one group of latent frames and write the tokens into the packed sequence.

    Args:
        latents: ``[B, C, T, Y, X]``, any strides; rounded to the dtype of ``weight``.
        weight: ``[D, C, kt, ky, kx]``; (1,2,2) for 1x and noisy, (2,4,4) for 2x, (4,8,8) for 4x.
        bias: ``[D]``.
        packed: packed sequence ``[B, N, D]``, any strides with contiguous channels; rows ``offset`` to ``offset + num_patches`` are written, in the
            order time, y, x.
        offset: first row to write, in ``packed`` and in the rotary tables.
        axes: per-axis tables of the group as :func:`aligned_rope` takes them; kt positions of each axis make a cell.
            None leaves ``cos`` and ``sin`` alone.
        cos: rotary table of the packed sequence ``[N_latent, K/2]`` fp32; the rows of the patches are written.
        sin: the same for sin.
    """
    _check(latents, weight, bias, packed, offset, axes, cos, sin)
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
    if axes is not None:
        # _check has seen to it.
        assert cos is not None
        assert sin is not None
        write_rows(axes, cos, sin, offset, kernel[0])


patchify_pack.register_kernel("cuda")(_launch)
patchify_pack.register_fake(_check)


def num_patches(size: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """Tokens that latents of ``size`` (T, Y, X) give with patches of ``kernel``."""
    count = 1
    for length, k in zip(size, kernel, strict=True):
        count *= -(-length // k)
    return count


def _check_rope(
    latents: Tensor,
    weight: Tensor,
    offset: int,
    axes: Sequence[Tensor],
    cos: Tensor | None,
    sin: Tensor | None,
) -> None:
    if cos is None or sin is None:
        raise ValueError("cos and sin must be given with axes, got None")
    kernel = weight.shape[2:]
    check_axes(axes, cos, sin, offset, kernel[0])
    for i, (size, k) in enumerate(zip(latents.shape[2:], kernel, strict=True)):
        num_positions, num_patches = axes[i].shape[0], -(-size // k)
        if -(-num_positions // kernel[0]) != num_patches:
            raise ValueError(
                f"axes[{i}] must have {kernel[0]} positions for each of {num_patches} patches, got {num_positions}"
            )


def _make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    batch, channels, frames, height, width, patch_t, patch_yx, dim, has_rope = shape
    latents = torch.randn(batch, channels, frames, height, width, device=device).to(dtype)
    weight = torch.randn(dim, channels, patch_t, patch_yx, patch_yx, device=device)
    weight = (weight / weight[0].numel() ** 0.5).to(dtype)
    num_rows = num_patches((frames, height, width), (patch_t, patch_yx, patch_yx)) + 3
    packed = torch.full((batch, num_rows, dim), float("nan"), dtype=dtype, device=device)
    # A token is 2 x 2 latents.
    axes = make_axes((frames, -(-height // 2), -(-width // 2)), device)
    cos, sin = make_rope_outputs(num_rows, axes)
    bias = torch.randn(dim, device=device).to(dtype)
    return latents, weight, bias, packed, 2, axes if has_rope else None, cos, sin


register(
    KernelSpec(
        name="patchify_pack",
        formula="token = weight . cell + bias over (kt, ky, kx) cells of the latents",
        fuses="replicate padding, patch embedding, flattening, concatenation into the packed sequence, rotary rows",
        exactness="rounding",
        op=patchify_pack,
        reference=patchify_pack_reference,
        launch=_launch,
        make_inputs=_make_inputs,
        # batch, channels, frames, height, width, patch frames, patch size, token width, whether rotary rows are written
        test_shapes=(
            (1, 16, 3, 6, 10, 1, 2, 24, 1),
            (1, 16, 9, 8, 6, 1, 2, 136, 0),
            (2, 16, 2, 11, 6, 2, 4, 8, 1),
            (1, 5, 5, 6, 22, 4, 8, 40, 1),
        ),
        # The noisy latents of a step, then the history of a section at 544x704.
        bench_shapes=(
            (1, 16, 9, 68, 88, 1, 2, 3072, 0),
            (1, 16, 2, 68, 88, 1, 2, 3072, 1),
            (1, 16, 2, 68, 88, 2, 4, 3072, 1),
            (1, 16, 16, 68, 88, 4, 8, 3072, 1),
        ),
        max_error={torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 3e-3},
        mutates=(3, 6, 7),
        strided=(0, 3),
        mma={"_patchify_kernel": ("bf16",)},
    )
)
