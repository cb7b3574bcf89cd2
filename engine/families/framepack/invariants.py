"""What a job computes once: modulation table, refined text, projected image tokens.

None of it depends on the latents, so the weights behind it never enter the step loop. They may stay in host
memory: each is on the device while it computes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, silu

from ...model.attention import attention
from ...model.outer_weights import OuterLinear, OuterWeights
from ..transformer_base import PreparedJob
from .layers import StreamModulation
from .transformer_config import TransformerConfig

_SINUSOID_DIM = 256


@dataclass(frozen=True, slots=True)
class JobInvariants(PreparedJob):
    """Conditioning of every step of a job.

    Attributes:
        modulation: outputs of all modulation linears [num_steps, num_values], in execution order.
        refined_text: text tokens after the refiner, which depends on the timestep [num_steps, L, D].
        vision_tokens: projected image tokens [1, I, D].
        num_dual_blocks: dual-stream blocks, which own 12 D-vectors of the table each; single-stream own 3.
    """

    modulation: Tensor
    refined_text: Tensor
    vision_tokens: Tensor
    num_dual_blocks: int

    @property
    def num_condition_tokens(self) -> int:
        return self.vision_tokens.shape[1] + self.refined_text.shape[1]

    def with_image(self, vision_tokens: Tensor) -> "JobInvariants":
        """These invariants with the tokens of another image; modulation and text do not depend on it."""
        return replace(self, vision_tokens=vision_tokens)

    def vectors(self, step: int) -> list[Tensor]:
        """All modulation vectors [1, D] of ``step``."""
        return list(self.modulation[step : step + 1].split(self.refined_text.shape[2], dim=1))


@dataclass(frozen=True, slots=True)
class StepModulation:
    """Modulation vectors of one step, sorted by block; each [1, D]."""

    vectors: list[Tensor]
    num_dual_blocks: int

    def dual(self, block: int) -> tuple[StreamModulation, StreamModulation]:
        """Vectors of the latent and of the condition stream: shift, scale, gate, then the same for the MLP."""
        v = self.vectors[12 * block : 12 * block + 12]
        return (v[0], v[1], v[2], v[3], v[4], v[5]), (v[6], v[7], v[8], v[9], v[10], v[11])

    def single(self, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Shift, scale and gate."""
        start = 12 * self.num_dual_blocks + 3 * block
        return self.vectors[start], self.vectors[start + 1], self.vectors[start + 2]

    def final(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of the output norm, in this order."""
        return self.vectors[-2], self.vectors[-1]


def sinusoid(values: Tensor) -> Tensor:
    """``[cos | sin]`` of ``value * 10000^(-i/128)``: [S] -> [S, 256] fp32."""
    half = _SINUSOID_DIM // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[:, None] * exponents.exp()[None]
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class EmbeddingMLP:
    """Linear, SiLU, Linear."""

    def __init__(self, weights: OuterWeights, name: str, in_features: int, dim: int) -> None:
        self.linear_1 = weights.linear(f"{name}.linear_1", in_features, dim)
        self.linear_2 = weights.linear(f"{name}.linear_2", dim, dim)

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear_2(silu(self.linear_1(x)))


class TimeTextEmbedding:
    """``temb``: sum of the embedded timestep, distilled guidance (if the model has it) and pooled text."""

    def __init__(
        self, weights: OuterWeights, name: str, pooled_dim: int, dim: int, *, has_guidance: bool
    ) -> None:
        self.timestep = EmbeddingMLP(weights, f"{name}.timestep_embedder", _SINUSOID_DIM, dim)
        self.guidance = (
            EmbeddingMLP(weights, f"{name}.guidance_embedder", _SINUSOID_DIM, dim) if has_guidance else None
        )
        self.text = EmbeddingMLP(weights, f"{name}.text_embedder", pooled_dim, dim)

    def __call__(self, timesteps: Tensor, pooled: Tensor, guidance: Tensor | None = None) -> Tensor:
        """[S, D] for timesteps [S], pooled text [1, P] and guidance [1] (already times 1000)."""
        embedding = self.timestep(sinusoid(timesteps).to(pooled.dtype))
        if self.guidance is not None:
            if guidance is None:
                raise ValueError("guidance must be given: the model embeds a distilled guidance scale")
            embedding = embedding + self.guidance(sinusoid(guidance).to(pooled.dtype))
        return embedding + self.text(pooled)


class AffineNorm:
    """LayerNorm with learned weight and bias."""

    def __init__(self, weights: OuterWeights, name: str, dim: int) -> None:
        self.weight = weights.tensor(f"{name}.weight", dim)
        self.bias = weights.tensor(f"{name}.bias", dim)

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.device), self.bias.to(x.device)
        return layer_norm(x, x.shape[-1:], weight, bias, eps=1e-6)


class RefinerBlock:
    """Self-attention and MLP over text tokens, gated by the timestep; norms are affine."""

    def __init__(self, weights: OuterWeights, name: str, dim: int, mlp_dim: int, num_heads: int) -> None:
        self.num_heads = num_heads
        self.norm_1 = AffineNorm(weights, f"{name}.norm1", dim)
        self.norm_2 = AffineNorm(weights, f"{name}.norm2", dim)
        self.qkv = weights.linear([f"{name}.attn.to_{part}" for part in "qkv"], dim, dim)
        self.out = weights.linear(f"{name}.attn.to_out.0", dim, dim)
        self.mlp_in = weights.linear(f"{name}.ff.net.0.proj", dim, mlp_dim)
        self.mlp_out = weights.linear(f"{name}.ff.net.2", mlp_dim, dim)
        self.gates = weights.linear(f"{name}.norm_out.linear", dim, 2 * dim)

    def __call__(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[S, L, D] for tokens [S, L, D] and timestep embedding [S, D]."""
        attention_gate, mlp_gate = self.gates(silu(embedding)).unsqueeze(1).chunk(2, dim=-1)
        q, k, v = self.qkv(self.norm_1(x)).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        x = x + self.out(attention(q, k, v)) * attention_gate
        return x + self.mlp_out(silu(self.mlp_in(self.norm_2(x)))) * mlp_gate


class TextRefiner:
    """Projects text embeddings and refines them for each timestep."""

    def __init__(self, weights: OuterWeights, name: str, config: TransformerConfig) -> None:
        text_dim, dim, heads = config.text_embed_dim, config.inner_dim, config.num_attention_heads
        self.embedding = TimeTextEmbedding(
            weights, f"{name}.time_text_embed", text_dim, dim, has_guidance=False
        )
        self.proj_in = weights.linear(f"{name}.proj_in", text_dim, dim)
        self.blocks = [
            RefinerBlock(weights, f"{name}.token_refiner.refiner_blocks.{i}", dim, config.mlp_dim, heads)
            for i in range(config.num_refiner_layers)
        ]

    def __call__(self, text_embeds: Tensor, timesteps: Tensor) -> Tensor:
        """[S, L, D] for valid text embeddings [1, L, E] (no padding) and timesteps [S]."""
        pooled = text_embeds.float().mean(dim=1).to(text_embeds.dtype)
        embedding = self.embedding(timesteps, pooled)
        x = self.proj_in(text_embeds).expand(timesteps.shape[0], -1, -1)
        for block in self.blocks:
            x = block(x, embedding)
        return x


class ImageProjection:
    """Linear, SiLU, Linear on every image token."""

    def __init__(self, weights: OuterWeights, name: str, image_dim: int, dim: int) -> None:
        self.up = weights.linear(f"{name}.up", image_dim, 3 * dim)
        self.down = weights.linear(f"{name}.down", 3 * dim, dim)

    def __call__(self, image_embeds: Tensor) -> Tensor:
        return self.down(silu(self.up(image_embeds)))


def modulation_table(linears: Sequence[OuterLinear], embedding: Tensor) -> Tensor:
    """[S, sum of outputs] for the embeddings [S, D] of all timesteps: each weight is read once."""
    activated = silu(embedding)
    return torch.cat([linear(activated) for linear in linears], dim=1)
