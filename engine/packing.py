"""The packed sequence of one section: token layout and rotary tables.

Latent tokens stand in the order [4x | 2x | 1x | noisy]; condition tokens follow in the joint attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .workspace import Workspace

PATCH_2X, PATCH_4X = (2, 4, 4), (4, 8, 8)


@dataclass(frozen=True, slots=True)
class PackedSection:
    """Everything about a section that does not change from step to step.

    Attributes:
        clean_tokens: embedded history [1, N_clean, D], in packed order.
        cos: rotary table of all latent tokens [N_clean + N_noisy, head_dim / 2], fp32.
        sin: the same for sin.
        num_noisy_tokens: tokens of the latents that are denoised, the last of the sequence.
        workspace: scratch memory of the section's steps, which run one after the other.
    """

    clean_tokens: Tensor
    cos: Tensor
    sin: Tensor
    num_noisy_tokens: int
    workspace: Workspace = field(default_factory=Workspace)

    @property
    def num_latent_tokens(self) -> int:
        return self.cos.shape[0]


def rope_axis_table(positions: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cos and sin of ``position * theta^(-2i/dim)``, i = 0 .. dim/2 - 1.

    Args:
        positions: ``[P]``.
        dim: channels of this axis, even; each value serves two adjacent channels.
        theta: base of the frequencies.

    Returns:
        cos and sin ``[P, dim/2]``, fp32.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    angles = torch.outer(positions.float(), 1.0 / theta**exponents)
    return angles.cos(), angles.sin()


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
