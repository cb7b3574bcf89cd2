"""The packed sequence of one section: token layout and rotary tables.

Latent tokens stand in the order [4x | 2x | 1x | noisy]; condition tokens follow in the joint attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...model.workspace import Workspace

PATCH_2X, PATCH_4X = (2, 4, 4), (4, 8, 8)


@dataclass(frozen=True, slots=True)
class CleanLatents:
    """Noise-free context of one section.

    Attributes:
        clean: start latent and nearest history frame [1, C, 2, Y, X], or None.
        clean_2x: [1, C, 2, Y, X], or None.
        clean_4x: [1, C, 16, Y, X], or None.
    """

    clean: Tensor | None
    clean_2x: Tensor | None
    clean_4x: Tensor | None

    def anchored(self, latent: Tensor) -> "CleanLatents":
        """The same with ``latent`` [1, C, 1, Y, X] in the place of the start latent."""
        assert self.clean is not None, "a section sees its start"
        return replace(self, clean=torch.cat((latent, self.clean[:, :, 1:]), dim=2))


@dataclass(frozen=True, slots=True)
class ContextGroup:
    """Latents that are packed alike.

    Attributes:
        kernel: 1, 2, 4 or 8: frames in one token.
        latents: [1, C, T, Y, X]; of a tail [1, C, T, 1, 1], where T is 1 for a mean of all frames.
        indices: positions of the frames.
        is_tail: the latents are means of whole pictures.
    """

    kernel: int
    latents: Tensor
    indices: range
    is_tail: bool = False


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
    frame_indices: Sequence[int],
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
