"""The packed transformer: noisy latents and a fixed-length packed history in, velocity out.

Formulas: HunyuanVideo's MMDiT with FramePack's history patches and aligned rotary tables. A forward is split
by lifetime: :meth:`PackedTransformer.prepare_job` and :meth:`pack_section` hold what steps share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....kernels import aligned_rope, modulated_layer_norm, num_patches, patchify_pack, reuse_residual
from ...errors import CheckpointError
from ...model.outer_weights import OuterLinear, OuterWeights
from ...model.packing import ContextGroup, Indices, PackedSection, rope_axes
from ...model.precision import UnitSpec
from ...request.schedule import KERNELS
from ..transformer_base import StepContext, StepPass, Transformer
from .invariants import (
    ImageProjection,
    JobInvariants,
    StepModulation,
    TextRefiner,
    TimeTextEmbedding,
    modulation_table,
)
from .layers import BlockContext, DualBlock, HeadNorms, SingleBlock
from .transformer_config import TransformerConfig
from .unit_layout import unit_specs

# Tokens at a time that the output projection takes in fp32.
FP32_HEAD_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class PatchEmbedding:
    """Weight [D, C, kt, ky, kx] and bias [D] of one scale."""

    weight: Tensor
    bias: Tensor

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])


class PackedTransformer(Transformer):
    """FramePack's weights and forward pass."""

    config: TransformerConfig

    @property
    def unit_specs(self) -> tuple[UnitSpec, ...]:
        return unit_specs(self.config)

    def _build_blocks(self, weights: OuterWeights) -> None:
        config = self.config
        self.dual_blocks = [_dual_block(weights, i, config) for i in range(config.num_layers)]
        self.single_blocks = [_single_block(weights, i, config) for i in range(config.num_single_layers)]

    def _build(self, weights: OuterWeights, job_weights: OuterWeights) -> None:
        config = self.config
        _check_supported(config)
        dim = config.inner_dim
        patch = (config.patch_size_t, config.patch_size, config.patch_size)
        self.x_embedder = _patch_embedding(weights, "x_embedder.proj", config, patch)
        # By the kernel of a group; kernel 8 takes means of what kernel 4 takes.
        self.clean_embedders = {
            kernel: _patch_embedding(weights, f"clean_x_embedder.{name}", config, KERNELS[kernel])
            for kernel, name in ((1, "proj"), (2, "proj_2x"), (4, "proj_4x"))
        }
        self.clean_embedders[8] = self.clean_embedders[4]
        self.image_projection = ImageProjection(job_weights, "image_projection", config.image_proj_dim, dim)
        self.time_text_embedding = TimeTextEmbedding(
            job_weights,
            "time_text_embed",
            config.pooled_projection_dim,
            dim,
            has_guidance=config.guidance_embeds,
        )
        self.refiner = TextRefiner(job_weights, "context_embedder", config)
        self.modulation_linears = _modulation_linears(job_weights, config)
        self.proj_out = weights.linear("proj_out", dim, config.out_channels * config.patch_size**2)

    def project_image(self, image_embeds: Tensor) -> Tensor:
        return self.image_projection(image_embeds.to(self.device, self.residual_dtype))

    def prepare_job(
        self,
        timesteps: Tensor,
        guidance: float | None,
        text_embeds: Tensor,
        text_mask: Tensor | None,
        pooled_embeds: Tensor,
        vision_tokens: Tensor,
    ) -> JobInvariants:
        num_valid = text_embeds.shape[1] if text_mask is None else int((text_mask != 0).sum())
        if num_valid == 0:
            raise ValueError("text_mask must mark at least one valid token, got none")
        timesteps = timesteps.to(self.device)
        text = text_embeds[:, :num_valid].to(self.device, self.residual_dtype)
        pooled = pooled_embeds.to(self.device, self.residual_dtype)
        scale = (
            None if guidance is None else torch.tensor([guidance], dtype=torch.float32, device=self.device)
        )
        embedding = self.time_text_embedding(timesteps, pooled, scale)
        return JobInvariants(
            modulation=modulation_table(self.modulation_linears, embedding),
            refined_text=self.refiner(text, timesteps),
            vision_tokens=vision_tokens,
            num_dual_blocks=self.config.num_layers,
        )

    def pack_section(
        self, groups: Sequence[ContextGroup], latent: Indices, size: tuple[int, int, int]
    ) -> PackedSection:
        num_clean = sum(group.num_tokens for group in groups)
        num_noisy = num_patches(size, self.x_embedder.kernel)
        tokens = torch.empty(
            (1, num_clean, self.config.inner_dim), dtype=self.residual_dtype, device=self.device
        )
        rows = num_clean + num_noisy, self.config.attention_head_dim // 2
        cos, sin = (torch.empty(rows, dtype=torch.float32, device=self.device) for _ in range(2))
        offset = 0
        for group in groups:
            embedding = self.clean_embedders[group.kernel]
            latents = group.at_kernel(self.device).to(self.residual_dtype)
            axes = self.rope_axes(group.indices, size)
            if group.is_pooled:
                patchify_pack(latents, embedding.weight, embedding.bias, tokens, offset)
                aligned_rope(group.pooled(axes), cos, sin, offset, 1)
            else:
                patchify_pack(latents, embedding.weight, embedding.bias, tokens, offset, axes, cos, sin)
            offset += group.num_tokens
        aligned_rope(self.rope_axes(latent, size), cos, sin, num_clean, 1)
        return PackedSection(tokens, cos, sin, num_noisy_tokens=num_noisy)

    def rope_axes(self, frames: Indices, size: tuple[int, int, int]) -> list[Tensor]:
        """Rotary tables of each axis for frames at positions ``frames``, beside noisy latents of ``size`` (T, Y, X)."""
        config = self.config
        grid = (size[1] // config.patch_size, size[2] // config.patch_size)
        return rope_axes(frames, grid, config.rope_axes_dim, config.rope_theta, self.device)

    def step(
        self,
        latents: Tensor,
        step: int,
        job: JobInvariants,
        section: PackedSection,
        context: StepContext | None = None,
    ) -> "PackedPass":
        return PackedPass(self, latents, step, job, section, context or self.context())

    def pack_tokens(self, latents: Tensor, step: int, job: JobInvariants, section: PackedSection) -> Tensor:
        """Joint buffer [1, N, D] of ``step``: history, embedded noisy latents, image, text."""
        num_clean, num_latent = section.clean_tokens.shape[1], section.num_latent_tokens
        num_vision = job.vision_tokens.shape[1]
        tokens = section.clean_tokens.new_empty(
            (1, num_latent + job.num_condition_tokens, self.config.inner_dim)
        )
        tokens[:, :num_clean] = section.clean_tokens
        self.embed_noisy(latents, tokens, num_clean)
        tokens[:, num_latent : num_latent + num_vision] = job.vision_tokens
        tokens[:, num_latent + num_vision :] = job.refined_text[step]
        return tokens

    def embed_noisy(self, latents: Tensor, tokens: Tensor, offset: int) -> None:
        """Write the embedded noisy latents to the rows of ``tokens`` [1, N, D] from ``offset``."""
        patchify_pack(latents, self.x_embedder.weight, self.x_embedder.bias, tokens, offset)

    def head(self, hidden: Tensor, modulation: StepModulation, size: tuple[int, ...]) -> Tensor:
        """Velocity [1, C, T, Y, X] from the noisy tokens after all blocks."""
        scale, shift = modulation.final()
        return self.project(modulated_layer_norm(hidden, scale, shift), size)

    def project(self, hidden: Tensor, size: tuple[int, ...]) -> Tensor:
        """Velocity [1, C, T, Y, X] from the modulated norm of the noisy tokens."""
        patches = self._project_in_fp32(hidden) if self.has_fp32_head else self.proj_out(hidden)
        p = self.config.patch_size
        frames, height, width = size
        cells = patches.view(1, frames, height // p, width // p, self.config.out_channels, p, p)
        return cells.permute(0, 4, 1, 2, 5, 3, 6).reshape(1, self.config.out_channels, frames, height, width)

    def _project_in_fp32(self, hidden: Tensor) -> Tensor:
        """In parts: an fp32 copy of all noisy tokens would be a third of what the step holds in int8."""
        parts = hidden.split(FP32_HEAD_TOKENS, dim=1)
        projection = self.proj_out.float()
        return torch.cat([projection(part.float()) for part in parts], dim=1)


@dataclass(eq=False)
class PackedPass(StepPass):
    """A forward through dual-stream blocks, then single-stream ones, over one buffer of tokens.

    It is made by :meth:`PackedTransformer.step`, whose arguments its fields are.
    """

    transformer: PackedTransformer
    latents: Tensor
    step: int
    job: JobInvariants
    section: PackedSection
    context: StepContext
    _tokens: Tensor | None = None
    _first_input: Tensor | None = None

    def __post_init__(self) -> None:
        self.modulation = StepModulation(self.job.vectors(self.step), self.job.num_dual_blocks)

    @property
    def tokens(self) -> Tensor:
        """Joint buffer [1, N, D]; the blocks update it in place."""
        if self._tokens is None:
            self._tokens = self.transformer.pack_tokens(self.latents, self.step, self.job, self.section)
        return self._tokens

    @property
    def noisy_tokens(self) -> Tensor:
        end = self.section.num_latent_tokens
        return self.tokens[:, end - self.section.num_noisy_tokens : end]

    @property
    def first_input(self) -> Tensor:
        if self._first_input is None:
            shift, scale = self.modulation.dual(0)[0][:2]
            latent_tokens = self.tokens[:, : self.section.num_latent_tokens]
            self._first_input = modulated_layer_norm(latent_tokens, scale, shift)
        return self._first_input

    def hidden(self) -> Tensor:
        context, units = self._block_context(), self.context.units
        # A step cache may have asked for it; it is as large as the tokens, so it does not outlive its block.
        latent_input, self._first_input = self._first_input, None
        index = 0
        for i, dual_block in enumerate(self.transformer.dual_blocks):
            dual_block(self.tokens, units, index, self.modulation.dual(i), context, latent_input)
            latent_input = None
            index += 2
        *blocks, last = self.transformer.single_blocks
        for i, block in enumerate(blocks):
            block(self.tokens, units.acquire(index), self.modulation.single(i), context)
            units.release(index)
            index += 1
        modulation = self.modulation.single(len(blocks))
        hidden = last.last(
            self.tokens, units.acquire(index), modulation, context, self.section.num_noisy_tokens
        )
        units.release(index)
        return hidden

    def _block_context(self) -> BlockContext:
        return BlockContext(
            cos=self.section.cos,
            sin=self.section.sin,
            attention=self.context.attention,
            workspace=self.section.workspace,
            dtype=self.transformer.dtype,
            token_chunk=self.context.token_chunk,
        )

    def head(self, hidden: Tensor) -> Tensor:
        return self.transformer.head(hidden, self.modulation, tuple(self.latents.shape[2:]))

    def reuse(self, residual: Tensor) -> Tensor:
        scale, shift = self.modulation.final()
        if self._tokens is not None:
            embedded = self.noisy_tokens
        else:
            # The step was skipped without a look at it: nothing but these rows is needed.
            embedded = torch.empty_like(residual)
            self.transformer.embed_noisy(self.latents, embedded, 0)
        hidden = reuse_residual(embedded, residual, scale, shift)
        return self.transformer.project(hidden, tuple(self.latents.shape[2:]))


def _check_supported(config: TransformerConfig) -> None:
    required = (
        ("patch_size", config.patch_size, 2),
        ("patch_size_t", config.patch_size_t, 1),
        ("has_image_proj", config.has_image_proj, True),
        ("has_clean_x_embedder", config.has_clean_x_embedder, True),
    )
    for key, value, wanted in required:
        if value != wanted:
            raise CheckpointError(
                f"{key} must be {wanted!r} in a FramePack transformer's config, got {value!r}; "
                "give a FramePack checkpoint"
            )
    for key, count in (("num_layers", config.num_layers), ("num_single_layers", config.num_single_layers)):
        if count < 1:
            raise CheckpointError(f"{key} must be at least 1, got {count}; give a FramePack checkpoint")


def _patch_embedding(
    weights: OuterWeights, name: str, config: TransformerConfig, kernel: tuple[int, int, int]
) -> PatchEmbedding:
    weight = weights.tensor(f"{name}.weight", config.inner_dim, config.in_channels, *kernel)
    return PatchEmbedding(weight, weights.tensor(f"{name}.bias", config.inner_dim))


def _modulation_linears(weights: OuterWeights, config: TransformerConfig) -> list[OuterLinear]:
    """In execution order, which is the order of :class:`StepModulation`."""
    dim = config.inner_dim
    dual = [
        weights.linear(f"transformer_blocks.{i}.{norm}.linear", dim, 6 * dim)
        for i in range(config.num_layers)
        for norm in ("norm1", "norm1_context")
    ]
    single = [
        weights.linear(f"single_transformer_blocks.{i}.norm.linear", dim, 3 * dim)
        for i in range(config.num_single_layers)
    ]
    return [*dual, *single, weights.linear("norm_out.linear", dim, 2 * dim)]


def _dual_block(weights: OuterWeights, index: int, config: TransformerConfig) -> DualBlock:
    attn, head_dim = f"transformer_blocks.{index}.attn", config.attention_head_dim
    q, k = (
        weights.stacked([f"{attn}.norm_{part}.weight", f"{attn}.norm_added_{part}.weight"], head_dim)
        for part in "qk"
    )
    return DualBlock(HeadNorms(q, k, index))


def _single_block(weights: OuterWeights, index: int, config: TransformerConfig) -> SingleBlock:
    attn = f"single_transformer_blocks.{index}.attn"
    q, k = (weights.stacked([f"{attn}.norm_{part}.weight"] * 2, config.attention_head_dim) for part in "qk")
    return SingleBlock(HeadNorms(q, k, config.num_layers + index))
