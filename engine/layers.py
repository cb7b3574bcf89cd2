"""Linears and blocks of the packed transformer, written for inference over isoframe.kernels.

The residual streams of latent and condition tokens share one buffer [1, N, D], latent tokens first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..kernels import gated_residual, modulated_layer_norm, qk_norm_rope
from .attention import attention
from .workspace import Workspace


@dataclass(frozen=True, slots=True)
class Linear:
    """``y = x W^T + b`` with weight [N, K] and bias [N]; several layers may be stacked along N."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def into(self, x: Tensor, out: Tensor) -> None:
        """Write the product for x [1, M, K] to ``out`` [1, M, N], which may be a slice of a wider buffer."""
        torch.addmm(self.bias, x[0], self.weight.t(), out=out[0])

    def rows(self, start: int, end: int | None = None) -> "Linear":
        """The layers stacked at rows ``start`` to ``end``, as views."""
        return Linear(self.weight[start:end], self.bias[start:end])


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary tables of the latent tokens, [num_latent_tokens, head_dim / 2] fp32 each."""

    cos: Tensor
    sin: Tensor

    @property
    def num_tokens(self) -> int:
        return self.cos.shape[0]


@dataclass(frozen=True, slots=True)
class StreamWeights:
    """One stream of a dual-stream block; ``qkv`` stacks q, k and v."""

    qkv: Linear
    out: Linear
    mlp_in: Linear
    mlp_out: Linear


# shift, scale and gate of the attention, then of the MLP; each [1, D].
StreamModulation = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# shift, scale and gate; each [1, D].
SingleModulation = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class DualBlock:
    """Dual-stream block: separate weights for latent and condition tokens, joint attention.

    ``q_norm`` and ``k_norm`` are [2, head_dim]: latent tokens, then condition tokens.
    """

    latent: StreamWeights
    condition: StreamWeights
    q_norm: Tensor
    k_norm: Tensor

    def __call__(
        self,
        tokens: Tensor,
        rotary: Rotary,
        modulations: tuple[StreamModulation, StreamModulation],
        workspace: Workspace,
        latent_input: Tensor | None = None,
    ) -> None:
        """Update ``tokens`` in place; ``latent_input`` is the modulated norm of the latent tokens if known."""
        split = rotary.num_tokens
        streams = (
            (self.latent, tokens[:, :split], modulations[0]),
            (self.condition, tokens[:, split:], modulations[1]),
        )
        qkv = workspace.take("qkv", (1, tokens.shape[1], self.latent.qkv.weight.shape[0]), tokens)
        if latent_input is None:
            latent_input = modulated_layer_norm(tokens[:, :split], modulations[0][1], modulations[0][0])
        self.latent.qkv.into(latent_input, qkv[:, :split])
        condition_input = modulated_layer_norm(tokens[:, split:], modulations[1][1], modulations[1][0])
        self.condition.qkv.into(condition_input, qkv[:, split:])
        attended = _self_attention(qkv, self.q_norm, self.k_norm, rotary)
        outputs = (attended[:, :split], attended[:, split:])
        for (weights, x, (_, _, gate, mlp_shift, mlp_scale, mlp_gate)), output in zip(
            streams, outputs, strict=True
        ):
            gated_residual(x, weights.out(output), gate)
            hidden = workspace.take("hidden", (1, x.shape[1], weights.mlp_in.weight.shape[0]), tokens)
            weights.mlp_in.into(modulated_layer_norm(x, mlp_scale, mlp_shift), hidden)
            gated_residual(x, weights.mlp_out(gelu_(hidden)), mlp_gate)


@dataclass(frozen=True, slots=True)
class SingleBlock:
    """Single-stream block: shared weights, attention and MLP in parallel.

    ``qkv_mlp`` stacks q, k, v (D rows each) and the MLP input (4D rows); ``out`` takes [attention | MLP].
    """

    qkv_mlp: Linear
    out: Linear
    q_norm: Tensor
    k_norm: Tensor

    def __call__(
        self, tokens: Tensor, rotary: Rotary, modulation: SingleModulation, workspace: Workspace
    ) -> None:
        """Update ``tokens`` in place."""
        branch = self._branch(tokens, rotary, modulation, workspace, slice(0, tokens.shape[1]))
        gated_residual(tokens, branch, modulation[2])

    def last(
        self,
        tokens: Tensor,
        rotary: Rotary,
        modulation: SingleModulation,
        workspace: Workspace,
        num_noisy: int,
    ) -> Tensor:
        """The block's result for the noisy tokens alone [1, num_noisy, D]; ``tokens`` stay as they are.

        Keys and values are taken from all tokens. Valid for the last block: nothing reads the other rows.
        """
        noisy = slice(rotary.num_tokens - num_noisy, rotary.num_tokens)
        result = tokens[:, noisy].clone()
        gated_residual(result, self._branch(tokens, rotary, modulation, workspace, noisy), modulation[2])
        return result

    def _branch(
        self, tokens: Tensor, rotary: Rotary, modulation: SingleModulation, workspace: Workspace, rows: slice
    ) -> Tensor:
        """Attention and MLP of the tokens ``rows``, before the gate."""
        shift, scale, _ = modulation
        num_tokens, dim = tokens.shape[1:]
        x = modulated_layer_norm(tokens, scale, shift)
        hidden = workspace.take("hidden", (1, rows.stop - rows.start, self.out.weight.shape[1]), tokens)
        mlp = hidden[:, :, dim:]
        self.qkv_mlp.rows(3 * dim).into(x[:, rows], mlp)
        gelu_(mlp)
        qkv = workspace.take("qkv", (1, num_tokens, 3 * dim), tokens)
        if mlp.shape[1] == num_tokens:
            self.qkv_mlp.rows(0, 3 * dim).into(x, qkv)
        else:
            # Queries of the other rows keep what the buffer held; every row is normed and rotated alone.
            self.qkv_mlp.rows(0, dim).into(x[:, rows], qkv[:, rows, :dim])
            self.qkv_mlp.rows(dim, 3 * dim).into(x, qkv[:, :, dim:])
        hidden[:, :, :dim] = _self_attention(qkv, self.q_norm, self.k_norm, rotary, rows)
        return self.out(hidden)


def gelu_(x: Tensor) -> Tensor:
    """GELU in its tanh form, in place."""
    result: Tensor = torch.ops.aten.gelu_(x, approximate="tanh")
    return result


def _self_attention(
    qkv: Tensor, q_norm: Tensor, k_norm: Tensor, rotary: Rotary, queries: slice = slice(None)
) -> Tensor:
    """Attention over a fused projection [1, N, 3D]; [1, M, D] for the rows ``queries``."""
    qkv = qkv.unflatten(2, (3, -1, q_norm.shape[1]))
    q, k = qk_norm_rope(qkv, q_norm, k_norm, rotary.cos, rotary.sin)
    return attention(q[:, queries], k, qkv[:, :, 2])
