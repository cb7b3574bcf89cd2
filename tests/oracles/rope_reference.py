"""Rotary tables of a group of latent frames, averaged over cells: a plain implementation to compare with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from isoframe.engine.model.packing import rope_axis_table


def rope_tables(
    frame_indices: Sequence[int],
    grid: tuple[int, int],
    axes_dim: tuple[int, int, int],
    theta: float,
    *,
    pool: int = 1,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Rotary table of one group of latent frames.

    A pooled group averages cos and sin over ``pool`` positions on each axis, after replicating the last one up
    to a multiple; the averages are not unit length and are not renormalised. As a cell is a product of axes
    and each channel belongs to one axis, the mean over the cell is the mean over that axis.

    Args:
        frame_indices: frame positions of the group.
        grid: noisy tokens along y and x.
        axes_dim: channels for time, y and x.
        theta: base of the frequencies.
        pool: 1, 2 or 4.

    Returns:
        cos and sin ``[T' * Y' * X', sum(axes_dim) / 2]`` fp32, in the order time, y, x.
    """
    positions = (torch.tensor(list(frame_indices)), torch.arange(grid[0]), torch.arange(grid[1]))
    tables = [
        tuple(_pool(table, pool) for table in rope_axis_table(axis.to(device), dim, theta))
        for axis, dim in zip(positions, axes_dim, strict=True)
    ]
    cos, sin = (_outer_rows([table[part] for table in tables]) for part in (0, 1))
    return cos, sin


def _pool(table: Tensor, pool: int) -> Tensor:
    missing = -table.shape[0] % pool
    padded = torch.cat((table, table[-1:].expand(missing, -1)))
    pooled: Tensor = padded.unflatten(0, (-1, pool)).mean(1)
    return pooled


def _outer_rows(axes: list[Tensor]) -> Tensor:
    """Concatenated channels for every (t, y, x) of the per-axis tables."""
    t, y, x = axes
    shape = (t.shape[0], y.shape[0], x.shape[0])
    parts = (t[:, None, None], y[None, :, None], x[None, None, :])
    return torch.cat([part.expand(*shape, -1) for part in parts], dim=-1).flatten(0, 2)
