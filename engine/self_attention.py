"""The attention step of a block: from a fused projection to attended tokens."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ..kernels import qk_norm_rope


class SelfAttention(Protocol):
    """Norm of q and k, rotation, attention."""

    def attend(
        self,
        qkv: Tensor,
        q_norm: Tensor,
        k_norm: Tensor,
        cos: Tensor,
        sin: Tensor,
        out: Tensor,
        queries: slice,
        block: int,
    ) -> None:
        """Write the attention of the rows ``queries`` over all rows.

        Args:
            qkv: fused projection [1, N, 3, H, K], latent tokens first.
            q_norm: RMSNorm weights of q [2, K]: latent tokens, then condition tokens.
            k_norm: the same for k.
            cos: rotary table of the latent tokens [M, K/2] fp32.
            sin: the same for sin.
            out: [1, len(queries), H * K], any row stride.
            queries: rows that ask.
            block: which block asks, for state that is kept from step to step.
        """
        ...


class FloatAttention:
    """q and k in the activations' dtype, through a backend."""

    def __init__(self, backend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self._backend = backend

    def attend(
        self,
        qkv: Tensor,
        q_norm: Tensor,
        k_norm: Tensor,
        cos: Tensor,
        sin: Tensor,
        out: Tensor,
        queries: slice,
        block: int,
    ) -> None:
        q, k = qk_norm_rope(qkv, q_norm, k_norm, cos, sin)
        out.copy_(self._backend(q[:, queries], k, qkv[:, :, 2]))
