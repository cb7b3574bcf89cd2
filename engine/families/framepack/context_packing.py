"""The packed sequence of a section under a packing schedule: any number of levels, and the tail.

Levels with kernels 1, 2 and 4 are embedded as the published groups are. Kernel 8 takes means of 2 x 2 x 2 latents, after
replicate padding to multiples of (8, 16, 16), through the (4, 8, 8) kernel; its rotary tables are means over 8 positions.
A tail is one value a frame and channel ("ta") or one a channel ("tc"): replicated over the rows and columns of the kernel
of its level, so that a token stands for as many frames as one of that level. Its rotary tables are means over the
frames of a token ("ta") or over all positions ("tc"), and over the whole picture.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ....kernels import aligned_rope, num_patches, patchify_pack
from ...request.schedule import KERNELS
from .packing import ContextGroup, PackedSection
from .transformer import Indices, PackedTransformer, PatchEmbedding

_EMBEDDERS = {1: "clean", 2: "clean_2x", 4: "clean_4x", 8: "clean_4x"}


def pack_context(
    transformer: PackedTransformer,
    groups: Sequence[ContextGroup],
    latent: Indices,
    size: tuple[int, int, int],
) -> PackedSection:
    """Embed what a section sees and build its rotary tables.

    Args:
        transformer: whose patch embeddings are taken.
        groups: in packed order; the noisy tokens follow.
        latent: positions of the noisy latents.
        size: T, Y, X of the noisy latents.
    """
    transformer.self_attention.reset()
    counts = [_num_tokens(group) for group in groups]
    packed = transformer.empty_section(sum(counts), size)
    offset = 0
    for group, count in zip(groups, counts, strict=True):
        latents = _at_kernel(group, transformer.device).to(transformer.residual_dtype)
        embedding: PatchEmbedding = transformer.clean_embedders[_EMBEDDERS[group.kernel]]
        patchify_pack(latents, embedding.weight, embedding.bias, packed.clean_tokens, offset)
        tables = _pooled_tables(transformer.rope_axes(group.indices, size), group)
        aligned_rope(tables, packed.cos, packed.sin, offset, 1)
        offset += count
    aligned_rope(transformer.rope_axes(latent, size), packed.cos, packed.sin, offset, 1)
    return packed


def _num_tokens(group: ContextGroup) -> int:
    frames, rows, columns = group.latents.shape[2:]
    return num_patches((frames, rows, columns), KERNELS[group.kernel])


def _at_kernel(group: ContextGroup, device: torch.device) -> Tensor:
    """The latents as a patch embedding takes them."""
    latents = group.latents.to(device)
    if group.is_tail:
        latents = latents.expand(-1, -1, -1, *KERNELS[group.kernel][1:])
    if group.kernel != 8:
        return latents
    far_ends = [
        n for length, k in zip(latents.shape[:1:-1], KERNELS[8][::-1], strict=True) for n in (0, -length % k)
    ]
    padded = torch.nn.functional.pad(latents, far_ends, mode="replicate")
    return torch.nn.functional.avg_pool3d(padded, 2)


def _pooled_tables(axes: Sequence[Tensor], group: ContextGroup) -> list[Tensor]:
    """One row of every axis for each token along it."""
    whole = [table.shape[0] for table in axes[:3]]
    pools = [group.kernel] * 3
    if group.is_tail:
        is_total = group.latents.shape[2] == 1
        pools = [whole[0] if is_total else group.kernel, *whole[1:]]
    return [_pool(table, pool) for table, pool in zip(axes, pools * 2, strict=True)]


def _pool(table: Tensor, pool: int) -> Tensor:
    """Means [ceil(P / pool), F] of a table [P, F] whose last position is repeated."""
    missing = -table.shape[0] % pool
    padded = torch.cat((table, table[-1:].expand(missing, -1)))
    pooled: Tensor = padded.unflatten(0, (-1, pool)).mean(1)
    return pooled
