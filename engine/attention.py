"""Attention over the joint sequence of latent and condition tokens."""

import torch
from torch import Tensor

BACKEND = "torch SDPA"


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention with scale 1/sqrt(head_dim).

    Args:
        q: ``[B, M, H, K]``.
        k: ``[B, N, H, K]``.
        v: ``[B, N, H, K]``; any strides with contiguous channels.
        mask: boolean ``[B, 1, M, N]``, True where a key takes part; None for all.

    Returns:
        ``[B, M, H * K]``.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2)
