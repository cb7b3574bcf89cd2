"""Blocks of the packed transformer, written for inference over isoframe.kernels.

The residual streams of latent and condition tokens share one buffer [1, N, D], latent tokens first. A block owns its
norm weights only: its linear layers come as units, wherever these live.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ....quant import Activation, Projection
from ...model.attention import BlockRows, SelfAttention
from ...model.units import Unit, UnitSource
from ...model.workspace import Workspace

# shift, scale and gate of the attention, then of the MLP; each [1, D].
StreamModulation = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# shift, scale and gate; each [1, D].
SingleModulation = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What all blocks of a step share.

    Attributes:
        cos: rotary table of the latent tokens, [num_latent_tokens, head_dim / 2] fp32.
        sin: the same for sin.
        attention: joint self-attention.
        workspace: scratch memory.
        dtype: of activations between the residual stream and the products.
        token_chunk: most tokens whose MLP activations exist at a time; None for all.
    """

    cos: Tensor
    sin: Tensor
    attention: SelfAttention
    workspace: Workspace
    dtype: torch.dtype
    token_chunk: int | None = None

    @property
    def num_latent_tokens(self) -> int:
        return self.cos.shape[0]

    def scratch(self, name: str, num_tokens: int, width: int) -> Tensor:
        """Uninitialized [1, num_tokens, width]."""
        return self.workspace.take(name, (1, num_tokens, width), self.dtype, self.cos.device)

    def attend(self, qkv: Tensor, norms: "HeadNorms", out: Tensor, queries: slice) -> None:
        """Attention over a fused projection [1, N, 3D] into ``out`` [1, M, D], for the rows ``queries``.

        ``out`` may be those rows of the projected queries.
        """
        rows = BlockRows(
            qkv=qkv.unflatten(2, (3, -1, norms.q.shape[1])), q_norm=norms.q, k_norm=norms.k, cos=self.cos, sin=self.sin,
            out=out, queries=queries, block=norms.block,
        )  # fmt: skip
        self.attention.attend(rows)

    def chunks(self, num_tokens: int) -> list[slice]:
        step = self.token_chunk or num_tokens
        return [slice(start, min(start + step, num_tokens)) for start in range(0, num_tokens, step)]


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm weights of q and k, [2, head_dim] each: latent tokens, then condition tokens; and whose they are."""

    q: Tensor
    k: Tensor
    block: int


@dataclass(frozen=True, slots=True)
class DualBlock:
    """Dual-stream block: separate weights for latent and condition tokens, joint attention."""

    norms: HeadNorms

    def __call__(
        self,
        tokens: Tensor,
        units: UnitSource,
        first_unit: int,
        modulations: tuple[StreamModulation, StreamModulation],
        context: BlockContext,
        latent_input: Tensor | None = None,
    ) -> None:
        """Update ``tokens`` in place.

        Args:
            tokens: [1, N, D].
            units: where the block's two units come from. Each is taken when it is needed and given back when it is
                not, so that copies run beside as much of the block as possible.
            first_unit: the latent stream's; the condition stream's is the next one.
            modulations: of the latent and of the condition stream.
            context: of the step.
            latent_input: the modulated norm of the latent tokens [1, num_latent_tokens, D] if it is known.
        """
        split, (num_tokens, dim) = context.num_latent_tokens, tokens.shape[1:]
        streams = (slice(0, split), slice(split, num_tokens))
        qkv = context.scratch("qkv", num_tokens, 3 * dim)
        held: list[Unit] = []
        for rows, (shift, scale, *_) in zip(streams, modulations, strict=True):
            held.append(units.acquire(first_unit + len(held)))
            layer = held[-1].layer("qkv")
            if latent_input is not None and rows.start == 0:
                layer.into(layer.input(latent_input), qkv[:, rows])
            else:
                layer.into(layer.norm_input(tokens[:, rows], scale, shift), qkv[:, rows])
        # The projected queries are not read again, so the attention writes over them.
        attended = qkv[:, :, :dim]
        context.attend(qkv, self.norms, attended, slice(0, num_tokens))
        for index, (unit, rows, (_, _, gate, mlp_shift, mlp_scale, mlp_gate)) in enumerate(
            zip(held, streams, modulations, strict=True), first_unit
        ):
            stream, out = tokens[:, rows], unit.layer("out")
            out.add_gated(out.input(attended[:, rows]), stream, gate)
            _mlp(stream, unit, mlp_shift, mlp_scale, mlp_gate, context)
            units.release(index)


def _mlp(
    stream: Tensor, unit: Unit, shift: Tensor, scale: Tensor, gate: Tensor, context: BlockContext
) -> None:
    mlp_in, mlp_out = unit.layer("mlp_in"), unit.layer("mlp_out")
    for rows in context.chunks(stream.shape[1]):
        x = stream[:, rows]
        hidden = context.scratch("hidden", x.shape[1], mlp_in.out_features)
        mlp_in.into(mlp_in.norm_input(x, scale, shift), hidden, gelu=True)
        mlp_out.add_gated(mlp_out.input(hidden), x, gate)


@dataclass(frozen=True, slots=True)
class SingleBlock:
    """Single-stream block: shared weights, attention and MLP in parallel.

    Layer ``qkv_mlp`` stacks q, k, v (D rows each) and the MLP input (4D rows); ``out`` takes [attention | MLP].
    """

    norms: HeadNorms

    def __call__(
        self, tokens: Tensor, unit: Unit, modulation: SingleModulation, context: BlockContext
    ) -> None:
        """Update ``tokens`` in place."""
        self._add_branch(tokens, tokens, slice(0, tokens.shape[1]), unit, modulation, context)

    def last(
        self, tokens: Tensor, unit: Unit, modulation: SingleModulation, context: BlockContext, num_noisy: int
    ) -> Tensor:
        """Update the noisy tokens alone and return their view [1, num_noisy, D].

        Keys and values are taken from all tokens. Valid for the last block: nothing reads the other rows.
        """
        noisy = slice(context.num_latent_tokens - num_noisy, context.num_latent_tokens)
        self._add_branch(tokens, tokens[:, noisy], noisy, unit, modulation, context)
        return tokens[:, noisy]

    def _add_branch(
        self,
        tokens: Tensor,
        residual: Tensor,
        rows: slice,
        unit: Unit,
        modulation: SingleModulation,
        context: BlockContext,
    ) -> None:
        """Add attention and MLP of the tokens ``rows`` to ``residual``, which holds these rows."""
        shift, scale, gate = modulation
        num_rows, dim = residual.shape[1:]
        qkv_mlp, out = unit.layer("qkv_mlp"), unit.layer("out")
        mlp_in, chunks = qkv_mlp.rows(3 * dim), context.chunks(num_rows)
        is_whole = len(chunks) == 1
        x = qkv_mlp.norm_input(tokens, scale, shift)
        qkv = context.scratch("qkv", tokens.shape[1], 3 * dim)
        _project_qkv(x, qkv_mlp.rows(0, 3 * dim), rows, qkv)
        # Several chunks are normed again: keeping x through the attention costs more memory than they save.
        x = x[:, rows] if is_whole else None
        hidden = context.scratch("hidden", chunks[0].stop, out.in_features)
        # With all tokens at once the attention writes where the MLP's part is beside it; else over the projected
        # queries, which are not read again.
        attended = hidden[:, :, :dim] if is_whole else qkv[:, rows, :dim]
        context.attend(qkv, self.norms, attended, rows)
        for chunk in chunks:
            target, part = residual[:, chunk], hidden[:, : chunk.stop - chunk.start]
            if not is_whole:
                x = qkv_mlp.norm_input(target, scale, shift)
                part[:, :, :dim] = attended[:, chunk]
            mlp_in.into(x, part[:, :, dim:], gelu=True)
            out.add_gated(out.input(part), target, gate)


def _project_qkv(x: Activation, layer: Projection, rows: slice, qkv: Tensor) -> None:
    """Write the fused projection [1, N, 3D]; the queries of other tokens than ``rows`` stay undefined."""
    num_tokens, dim = qkv.shape[1], layer.in_features
    if rows.stop - rows.start == num_tokens:
        layer.into(x, qkv)
    else:
        layer.rows(0, dim).into(x[:, rows], qkv[:, rows, :dim])
        layer.rows(dim, 3 * dim).into(x, qkv[:, :, dim:])
