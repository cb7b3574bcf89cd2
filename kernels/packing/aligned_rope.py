"""Rotary rows of one group of latent frames, aligned with its cells.

A cell of ``pool`` positions along each axis gets the mean of cos and the mean of sin over the cell, which are not unit
length. Each channel turns with one axis, so its mean over the cell is its mean along that axis. Cells that reach past
the last position repeat it, which is a clamped index.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..launching.checks import check_dtype, check_same_device
from ..launching.kernel_specs import KernelSpec, Shape, register
from ..launching.launch import launch, settings
from ..launching.triton_import import tl, triton

AXES = ("t", "y", "x")


def aligned_rope_reference(axes: Sequence[Tensor], cos: Tensor, sin: Tensor, offset: int, pool: int) -> None:
    for out, tables in ((cos, axes[:3]), (sin, axes[3:])):
        shape = [table.shape[0] for table in tables]
        parts = [
            table.view(*(-1 if i == axis else 1 for i in range(3)), table.shape[1]).expand(*shape, -1)
            for axis, table in enumerate(tables)
        ]
        # [F, T, Y, X] at every position, before any pooling.
        full = torch.cat(parts, dim=-1).permute(3, 0, 1, 2)
        far_ends = [n for length in shape[::-1] for n in (0, -length % pool)]
        padded = torch.nn.functional.pad(full.unsqueeze(0), far_ends, mode="replicate")
        rows = torch.nn.functional.avg_pool3d(padded, pool)[0].flatten(1).T
        out[offset : offset + rows.shape[0]] = rows


def write_rows(axes: Sequence[Tensor], cos: Tensor, sin: Tensor, offset: int, pool: int) -> None:
    """Write the rows of :func:`aligned_rope` from means along each axis, without a table of all positions."""
    for out, tables in ((cos, axes[:3]), (sin, axes[3:])):
        pooled = [pool_table(table, pool) for table in tables]
        cells = out[offset : offset + num_cells(axes, pool)].unflatten(
            0, [table.shape[0] for table in pooled]
        )
        start = 0
        for axis, table in enumerate(pooled):
            width = table.shape[1]
            cells[..., start : start + width] = table.view(*(-1 if i == axis else 1 for i in range(3)), width)
            start += width


def pool_table(table: Tensor, pool: int) -> Tensor:
    """Means [ceil(P / pool), F] of a table [P, F] whose last position is repeated."""
    missing = -table.shape[0] % pool
    padded = torch.cat((table, table[-1:].expand(missing, -1)))
    pooled: Tensor = padded.unflatten(0, (-1, pool)).mean(1)
    return pooled


def num_cells(axes: Sequence[Tensor], pool: int) -> int:
    """Number of cells, and so of rotary rows, of the per-axis tables ``axes``."""
    count = 1
    for table in axes[:3]:
        count *= -(-table.shape[0] // pool)
    return count


@triton.jit
def split_cells(cells, cells_y, cells_x):  # type: ignore[no-untyped-def]
    """Position along t, y and x of the cells counted in this order."""
    return cells // (cells_y * cells_x), cells // cells_x % cells_y, cells % cells_x


@triton.jit
def _write_axis(  # type: ignore[no-untyped-def]
    table_ptr,
    out_ptr,
    rows,
    mask,
    cells,
    length,
    width,
    FIRST: tl.constexpr,
    FREQS: tl.constexpr,
    POOL: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Write channels FIRST to FIRST + FREQS of ``rows`` [BLOCK]: means over the positions of ``cells``."""
    freqs = tl.arange(0, BLOCK_F)[None, :]
    total = tl.zeros((cells.shape[0], BLOCK_F), tl.float32)
    for i in tl.static_range(POOL):
        positions = tl.minimum(cells * POOL + i, length - 1)[:, None]
        total += tl.load(table_ptr + positions * FREQS + freqs, mask=freqs < FREQS, other=0.0)
    out = out_ptr + rows.to(tl.int64)[:, None] * width + FIRST + freqs
    tl.store(out, total / POOL, mask=mask[:, None] & (freqs < FREQS))


@triton.jit
def write_aligned_rows(  # type: ignore[no-untyped-def]
    cos_t_ptr,
    cos_y_ptr,
    cos_x_ptr,
    sin_t_ptr,
    sin_y_ptr,
    sin_x_ptr,
    cos_ptr,
    sin_ptr,
    rows,
    mask,
    t,
    y,
    x,
    num_t,
    num_y,
    num_x,
    FREQS_T: tl.constexpr,
    FREQS_Y: tl.constexpr,
    FREQS_X: tl.constexpr,
    POOL: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Rotary rows of the cells (t, y, x), each [BLOCK]; ``num_*`` are positions before pooling."""
    width = FREQS_T + FREQS_Y + FREQS_X
    first_x: tl.constexpr = FREQS_T + FREQS_Y
    _write_axis(cos_t_ptr, cos_ptr, rows, mask, t, num_t, width, 0, FREQS_T, POOL, BLOCK_F)
    _write_axis(cos_y_ptr, cos_ptr, rows, mask, y, num_y, width, FREQS_T, FREQS_Y, POOL, BLOCK_F)
    _write_axis(cos_x_ptr, cos_ptr, rows, mask, x, num_x, width, first_x, FREQS_X, POOL, BLOCK_F)
    _write_axis(sin_t_ptr, sin_ptr, rows, mask, t, num_t, width, 0, FREQS_T, POOL, BLOCK_F)
    _write_axis(sin_y_ptr, sin_ptr, rows, mask, y, num_y, width, FREQS_T, FREQS_Y, POOL, BLOCK_F)
    _write_axis(sin_x_ptr, sin_ptr, rows, mask, x, num_x, width, first_x, FREQS_X, POOL, BLOCK_F)


@triton.jit
def _aligned_rope_kernel(  # type: ignore[no-untyped-def]
    cos_t_ptr,
    cos_y_ptr,
    cos_x_ptr,
    sin_t_ptr,
    sin_y_ptr,
    sin_x_ptr,
    cos_ptr,
    sin_ptr,
    offset,
    num_t,
    num_y,
    num_x,
    num_rows,
    FREQS_T: tl.constexpr,
    FREQS_Y: tl.constexpr,
    FREQS_X: tl.constexpr,
    POOL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    cells = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    t, y, x = split_cells(cells, tl.cdiv(num_y, POOL), tl.cdiv(num_x, POOL))
    write_aligned_rows(
        cos_t_ptr,
        cos_y_ptr,
        cos_x_ptr,
        sin_t_ptr,
        sin_y_ptr,
        sin_x_ptr,
        cos_ptr,
        sin_ptr,
        offset + cells,
        cells < num_rows,
        t,
        y,
        x,
        num_t,
        num_y,
        num_x,
        FREQS_T,
        FREQS_Y,
        FREQS_X,
        POOL,
        BLOCK_F,
    )


def _launch(axes: Sequence[Tensor], cos: Tensor, sin: Tensor, offset: int, pool: int) -> None:
    check_axes(axes, cos, sin, offset, pool)
    options = settings("aligned_rope", cos.device)
    launch(
        _aligned_rope_kernel,
        (triton.cdiv(num_cells(axes, pool), options["BLOCK"]),),
        *(table.contiguous() for table in axes),
        cos,
        sin,
        offset,
        *(table.shape[0] for table in axes[:3]),
        num_cells(axes, pool),
        **frequency_meta(axes),
        POOL=pool,
        **options,
    )


def frequency_meta(axes: Sequence[Tensor]) -> dict[str, int]:
    """Compile-time widths of the per-axis tables."""
    widths = [table.shape[1] for table in axes[:3]]
    meta = {f"FREQS_{axis.upper()}": width for axis, width in zip(AXES, widths, strict=True)}
    return meta | {"BLOCK_F": triton.next_power_of_2(max(widths))}


def check_axes(axes: Sequence[Tensor], cos: Tensor, sin: Tensor, offset: int, pool: int) -> None:
    """Raise a ValueError that names the argument that does not fit."""
    if pool < 1:
        raise ValueError(f"pool must be at least 1, got {pool}")
    if len(axes) != 6:
        raise ValueError(f"axes must be 6 tables, cos of t, y, x and sin of t, y, x, got {len(axes)}")
    for i, table in enumerate(axes):
        check_dtype(f"axes[{i}]", table, (torch.float32,))
        if table.ndim != 2 or table.shape[0] == 0 or table.shape != axes[i % 3].shape:
            raise ValueError(
                f"axes[{i}] must be [positions, frequencies], alike for cos and sin, got {tuple(table.shape)}"
            )
    num_rows, width = offset + num_cells(axes, pool), sum(table.shape[1] for table in axes[:3])
    for name, out in (("cos", cos), ("sin", sin)):
        check_dtype(name, out, (torch.float32,))
        if out.ndim != 2 or out.shape[1] != width or offset < 0 or out.shape[0] < num_rows:
            raise ValueError(
                f"{name} must be [N, {width}] with rows {offset} to {num_rows}, got {tuple(out.shape)}"
            )
        if not out.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {out.stride()}")
    check_same_device(cos=cos, sin=sin, **{f"axes[{i}]": table for i, table in enumerate(axes)})


@torch.library.custom_op("isoframe::aligned_rope", mutates_args=("cos", "sin"), device_types="cpu")
def aligned_rope(axes: Sequence[Tensor], cos: Tensor, sin: Tensor, offset: int, pool: int) -> None:
    """Write the rotary rows of one group of latent frames into the tables of the packed sequence.

    Args:
        axes: cos of t, y and x, then sin of t, y and x; fp32 ``[positions, frequencies]`` each. Positions are frames
            and noisy tokens along y and x.
        cos: ``[N_latent, K/2]`` fp32, contiguous, K/2 frequencies in all; rows from ``offset`` are written, one for
            each cell in the order time, y, x.
        sin: the same for sin.
        offset: first row to write.
        pool: positions of each axis in a cell: 1, 2 or 4.
    """
    check_axes(axes, cos, sin, offset, pool)
    write_rows(axes, cos, sin, offset, pool)


aligned_rope.register_kernel("cuda")(_launch)
aligned_rope.register_fake(check_axes)


def make_axes(positions: tuple[int, int, int], device: torch.device) -> list[Tensor]:
    """Tables of the real model's widths for consecutive positions."""
    angles = [
        torch.outer(torch.arange(count, device=device).float(), torch.rand(frequencies, device=device))
        for count, frequencies in zip(positions, (8, 28, 28), strict=True)
    ]
    return [angle.cos() for angle in angles] + [angle.sin() for angle in angles]


def make_rope_outputs(num_rows: int, axes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Cos and sin to be written, full of NaN."""
    shape = (num_rows, sum(table.shape[1] for table in axes[:3]))
    cos, sin = (torch.full(shape, float("nan"), device=axes[0].device) for _ in range(2))
    return cos, sin


def _make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    *positions, pool = shape
    axes = make_axes((positions[0], positions[1], positions[2]), device)
    return axes, *make_rope_outputs(num_cells(axes, pool) + 3, axes), 2, pool


register(
    KernelSpec(
        name="aligned_rope",
        formula="mean of cos and mean of sin over pool x pool x pool positions, separable by axis",
        fuses="replicate padding, average pooling, expansion over the other axes, concatenation of axes and groups",
        exactness="rounding",
        op=aligned_rope,
        reference=aligned_rope_reference,
        launch=_launch,
        make_inputs=_make_inputs,
        # positions along t, y and x, and how many of each make a cell
        test_shapes=((3, 3, 5, 1), (2, 5, 3, 2), (5, 3, 11, 4)),
        bench_shapes=((9, 34, 44, 1),),
        # The tables are fp32 beside activations of any dtype.
        max_error={torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6},
        mutates=(1, 2),
    )
)
