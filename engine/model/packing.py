"""The packed sequence of one section: groups of latents that are packed alike, token layout and rotary tables.

Latent tokens stand in the order of the groups, the coarsest first, then the noisy ones; condition tokens follow in the
joint attention. Groups with kernels 1, 2 and 4 are embedded by the patch embedding of their kernel. Kernel 8 takes means
of 2 x 2 x 2 latents, after replicate padding to multiples of (8, 16, 16), through the (4, 8, 8) kernel; its rotary tables
are means over 8 positions. A tail is one value a frame and channel ("ta") or one a channel ("tc"): replicated over the
rows and columns of the kernel of its level, so that a token stands for as many frames as one of that level. Its rotary
tables are means over the frames of a token ("ta") or over all positions ("tc"), and over the whole picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels import num_patches, pool_table
from ..request.schedule import KERNELS
from .workspace import Workspace

Indices = tuple[int, ...] | range


@dataclass(frozen=True, slots=True)
class ContextGroup:
    """Noise-free latents of one section that are packed alike.

    Attributes:
        kernel: 1, 2, 4 or 8: frames in one token.
        latents: [1, C, T, Y, X]; of a tail [1, C, T, 1, 1], where T is 1 for a mean of all frames.
        indices: positions of the frames, fed to the rotary embedding.
        is_tail: the latents are means of whole pictures.
    """

    kernel: int
    latents: Tensor
    indices: Indices
    is_tail: bool = False

    @property
    def num_tokens(self) -> int:
        return num_patches(tuple(self.latents.shape[2:]), KERNELS[self.kernel])

    @property
    def is_pooled(self) -> bool:
        """Whether latents and rotary tables are averaged before they reach a patch embedding."""
        return self.is_tail or self.kernel == 8

    def at_kernel(self, device: torch.device) -> Tensor:
        """The latents on ``device``, as a patch embedding takes them."""
        latents = self.latents.to(device)
        if self.is_tail:
            latents = latents.expand(-1, -1, -1, *KERNELS[self.kernel][1:])
        if self.kernel != 8:
            return latents
        far_ends = [
            n
            for length, k in zip(latents.shape[:1:-1], KERNELS[8][::-1], strict=True)
            for n in (0, -length % k)
        ]
        padded = torch.nn.functional.pad(latents, far_ends, mode="replicate")
        return torch.nn.functional.avg_pool3d(padded, 2)

    def pooled(self, axes: Sequence[Tensor]) -> list[Tensor]:
        """One row of every table of ``axes`` for each token along it."""
        pools = [self.kernel] * 3
        if self.is_tail:
            whole = [table.shape[0] for table in axes[:3]]
            is_total = self.latents.shape[2] == 1
            pools = [whole[0] if is_total else self.kernel, *whole[1:]]
        return [pool_table(table, pool) for table, pool in zip(axes, pools * 2, strict=True)]


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


def rope_axes(
    frame_indices: Indices,
    grid: tuple[int, int],
    axes_dim: tuple[int, int, int],
    theta: float,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Rotary tables of each axis for one group of latent frames, as :func:`isoframe.kernels.packing.aligned_rope` takes them.

    Args:
        frame_indices: frame positions of the group.
        grid: noisy tokens along y and x.
        axes_dim: channels for time, y and x.
        theta: base of the frequencies.
        device: of the tables.

    Returns:
        cos of t, y and x, then sin of t, y and x: [positions, channels / 2] fp32 each.
    """
    positions = (torch.tensor(list(frame_indices)), torch.arange(grid[0]), torch.arange(grid[1]))
    tables = [
        rope_axis_table(axis.to(device), dim, theta) for axis, dim in zip(positions, axes_dim, strict=True)
    ]
    return [cos for cos, _ in tables] + [sin for _, sin in tables]
