"""Self-attention over the joint sequence of latent and condition tokens, from projection to heads, in float or int8."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...kernels import int8_attention, int8_attention_fp8, qk_norm_rope, qk_norm_rope_int8
from .attention_backends import BACKENDS, AttentionBackend, Exactness, Requirements


@dataclass(frozen=True, slots=True)
class BlockRows:
    """What the attention of one block works on.

    Attributes:
        qkv: fused projection ``[1, N, 3, H, K]``, latent tokens first; q of other rows than ``queries`` may hold anything
            finite.
        q_norm: norm weights ``[2, K]`` of q: latent, then condition tokens.
        k_norm: the same for k.
        cos: rotary table of the latent tokens ``[num_latent_tokens, K / 2]``, fp32.
        sin: the same for sin.
        out: ``[1, M, H * K]``, strided rows with contiguous channels; may be those rows of q in ``qkv``.
        queries: M consecutive rows.
        block: index of the block among all blocks, dual then single.
    """

    qkv: Tensor
    q_norm: Tensor
    k_norm: Tensor
    cos: Tensor
    sin: Tensor
    out: Tensor
    queries: slice
    block: int

    @property
    def norms_and_tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.q_norm, self.k_norm, self.cos, self.sin


class SelfAttention(Protocol):
    """The attention step of every block: norm of q and k, rotation, attention.

    Attributes:
        name: of the backend, as in ``EngineConfig.attention``.
        exactness: "exact", "rounding" or "approximate".
    """

    @property
    def name(self) -> str: ...

    @property
    def exactness(self) -> Exactness: ...

    def reset(self) -> None:
        """Forget what earlier steps left; call it when a section begins."""
        ...

    def attend(self, rows: BlockRows) -> None:
        """Write the attention of ``rows.queries`` over all rows to ``rows.out``."""
        ...


@dataclass(frozen=True, slots=True)
class FloatAttention:
    """Norm and rotation in one operation, then a backend that takes q, k and v in floating point."""

    backend: AttentionBackend

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def exactness(self) -> Exactness:
        return self.backend.exactness

    def reset(self) -> None:
        """Do nothing: no state is kept from step to step."""

    def attend(self, rows: BlockRows) -> None:
        q, k = qk_norm_rope(rows.qkv[:, :, :2], *rows.norms_and_tables)
        rows.out.copy_(self.backend(q[:, rows.queries], k, rows.qkv[:, :, 2]))


SDPA_ATTENTION = FloatAttention(BACKENDS["sdpa"])


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention with scale 1/sqrt(head_dim) by torch, for the short sequences outside the blocks.

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


INT8_REQUIREMENTS = (
    Requirements(name="int8", head_dims=(64, 128)),
    Requirements(name="int8-fp8", head_dims=(64, 128), least=89),
)


class Int8Attention:
    """Norm, rotation and quantization of q and k in one operation, then attention on the int8 values.

    Keys are quantized without the mean of all keys, a vector that no softmax sees. As any vector serves, a step takes
    the mean of the step before; the first step of a section reads the keys twice, once for their mean.
    """

    exactness: Exactness = "approximate"

    def __init__(self, name: str = "int8") -> None:
        """Attend with fp16 values ("int8") or e4m3 values ("int8-fp8")."""
        self.name = name
        self._attention = int8_attention_fp8 if name == "int8-fp8" else int8_attention
        # Mean of the rotated keys [H, K] at the last step, by block.
        self._key_means: dict[int, Tensor] = {}

    def reset(self) -> None:
        self._key_means.clear()

    def attend(self, rows: BlockRows) -> None:
        qkv, block, means = rows.qkv, rows.block, self._key_means
        arguments = (qkv[:, :, :2], *rows.norms_and_tables)
        if block not in means:
            no_mean = torch.zeros(qkv.shape[3:], dtype=torch.float32, device=qkv.device)
            means[block] = qk_norm_rope_int8(*arguments, no_mean)[4]
        *quantized, means[block] = qk_norm_rope_int8(*arguments, means[block])
        first_query, _, _ = rows.queries.indices(qkv.shape[1])
        self._attention(*quantized, qkv[:, :, 2], rows.out.unflatten(2, qkv.shape[3:]), first_query)
