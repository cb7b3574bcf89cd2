"""Bytes of the denoising loop as formulas: units, tables, activations. ``docs/memory.md`` lists them.

All counts are of memory that is held at the same time, at the moment of a step that holds the most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...model.precision import Precision, align
from ...request.schedule import Schedule
from ..family import BlockWork, StepSizes, TokenCounts, WeightSizes
from .transformer_config import TransformerConfig
from .unit_layout import block_units, unit_specs

# Latent tensors in fp32 that the sampler keeps: noise, input, velocity, x0, three predictions and a sum.
_SAMPLER_LATENTS = 8
# fp32 copies of the values that are quantized to fp8 at a time, see quant.fp8.
_QUANTIZING_BYTES = 2 * 4 * 2**22
# As in transformer.FP32_HEAD_TOKENS.
_FP32_HEAD_TOKENS = 4096


def weight_sizes(config: TransformerConfig, precision: Precision) -> WeightSizes:
    """Bytes of the weights of a transformer whose units are in ``precision``."""
    dim, mlp = config.inner_dim, config.mlp_dim
    return WeightSizes(
        units=tuple(precision.unit_bytes(unit) for unit in unit_specs(config)),
        per_step=_step_weight_bytes(config, precision),
        once=precision.residual * _num_once_params(config),
        # A dual-stream block's modulation, or the refiner's MLP.
        largest_once_layer=precision.residual * max(6 * dim**2 + 6 * dim, mlp * dim + mlp),
    )


def num_modulation_vectors(config: TransformerConfig) -> int:
    """Vectors of ``inner_dim`` values that modulate the blocks and the output."""
    return 12 * config.num_layers + 3 * config.num_single_layers + 2


def _num_once_params(config: TransformerConfig) -> int:
    """Parameters that only the start of a job needs: modulation, time and text embeddings, refiner, image projection."""
    dim, mlp, text = config.inner_dim, config.mlp_dim, config.text_embed_dim
    modulation = num_modulation_vectors(config) * (dim**2 + dim)
    time = (2 if config.guidance_embeds else 1) * _mlp_params(256, dim, dim)
    time_text = time + _mlp_params(config.pooled_projection_dim, dim, dim)
    block = 4 * (dim**2 + dim) + 2 * (dim**2 + dim) + _mlp_params(dim, mlp, dim) + 4 * dim
    refiner = text * dim + dim + _mlp_params(256, dim, dim) + _mlp_params(text, dim, dim)
    refiner += config.num_refiner_layers * block
    return modulation + time_text + refiner + _mlp_params(config.image_proj_dim, 3 * dim, dim)


def _mlp_params(inputs: int, hidden: int, outputs: int) -> int:
    return inputs * hidden + hidden + hidden * outputs + outputs


def _step_weight_bytes(config: TransformerConfig, precision: Precision) -> int:
    """Bytes that every step needs outside the units: patch embeddings, head norms, output projection."""
    dim, channels = config.inner_dim, config.in_channels
    cells = (4, 4, 2 * 4 * 4, 4 * 8 * 8)
    patches = sum(dim * channels * cell + dim for cell in cells)
    norms = (4 * config.num_layers + 2 * config.num_single_layers) * config.attention_head_dim
    output = 4 * config.out_channels * (dim + 1)
    # The output projection runs in fp32, from a copy.
    copy = 4 * output if precision.residual == 2 else 0
    return precision.residual * (patches + norms + output) + copy


def packed_sequence(
    config: TransformerConfig,
    size: tuple[int, int],
    schedule: Schedule,
    vision: int,
    text: int,
    num_tail_frames: int = 0,
) -> TokenCounts:
    """Tokens of a section at ``size`` (height, width in pixels) that ``schedule`` lays out, with frames in its tail."""
    latents = height, width = size[0] // 8, size[1] // 8
    return TokenCounts(
        noisy=schedule.num_noisy_tokens(latents),
        clean=schedule.num_context_tokens(latents, num_tail_frames),
        vision=vision,
        text=text,
        latent_values=config.in_channels * schedule.window * height * width,
    )


@dataclass(frozen=True, kw_only=True)
class DenoiseShape(StepSizes):
    """What the step loop's memory and time depend on.

    Attributes:
        config: the transformer's.
    """

    config: TransformerConfig

    @property
    def dim(self) -> int:
        return self.config.inner_dim

    @cached_property
    def weights(self) -> WeightSizes:
        return weight_sizes(self.config, self.precision)

    @cached_property
    def blocks(self) -> Sequence[BlockWork]:
        config, sequence = self.config, self.sequence
        dim, mlp = float(self.dim), self.dim * config.mlp_ratio

        def products(weights: float, units: tuple[int, ...]) -> tuple[float, ...]:
            streams = (sequence.latent, sequence.condition) if len(units) == 2 else (sequence.total,)
            return tuple(2 * weights * num_tokens for num_tokens in streams)

        return [
            BlockWork(
                units=units,
                projections=products(3 * dim**2, units),
                attention=4.0 * sequence.total**2 * dim,
                rests=products(dim**2 + 2 * dim * mlp, units),
            )
            for units in block_units(config.num_layers, config.num_single_layers)
        ]

    def stream_bytes(self) -> int:
        return len(self.blocks) * self.sequence.total * self.dim * self.precision.residual

    def prepare_bytes(self) -> int:
        """What the refiner holds, which refines the text for every step at once; and two modulation tables."""
        tokens, vectors = self.num_steps * self.sequence.text, num_modulation_vectors(self.config)
        refiner = tokens * (5 * self.dim + 2 * self.config.mlp_dim)
        vision = self.sequence.vision * 7 * self.dim
        tables = 2 * self.num_branches * self.num_steps * vectors * self.dim
        return self.precision.residual * (refiner + vision + tables)

    def embeds_bytes(self) -> int:
        config, sequence = self.config, self.sequence
        text = sequence.text * config.text_embed_dim + config.pooled_projection_dim
        image = sequence.vision * config.image_proj_dim
        return self.precision.activation * (self.num_branches * text + image)

    def job_table_bytes(self) -> int:
        """Modulation, refined text, vision tokens."""
        sequence, vectors = self.sequence, num_modulation_vectors(self.config)
        rows = self.num_branches * self.num_steps * (vectors + sequence.text) + sequence.vision
        return self.precision.residual * rows * self.dim

    def table_bytes(self) -> int:
        """The tables of the job, clean tokens and rotary tables."""
        rotary = 2 * 4 * self.sequence.latent * self.config.attention_head_dim // 2
        return self.job_table_bytes() + self.precision.residual * self.sequence.clean * self.dim + rotary

    def activation_bytes(self, token_chunk: int | None) -> int:
        total = self.sequence.total
        chunk = total if token_chunk is None else min(token_chunk, total)
        held = self._kept_bytes() + self._scratch_bytes(chunk)
        return held + max(
            self._norm_bytes(), self._attention_bytes(chunk), self._product_bytes(chunk), self._head_bytes()
        )

    def _kept_bytes(self) -> int:
        """The joint tokens, the sampler's latents, what a step cache keeps."""
        sequence, rows = self.sequence, self.sequence.total
        if self.step_cache == "teacache":
            # The first input and the residual of every branch.
            rows += self.num_branches * (sequence.latent + sequence.noisy)
        elif self.step_cache != "none":
            rows += self.num_branches * sequence.noisy
        return self.precision.residual * rows * self.dim + _SAMPLER_LATENTS * 4 * sequence.latent_values

    def _scratch_bytes(self, chunk: int) -> int:
        """Fused projection of all tokens, MLP input of a chunk beside its attention, expanded weights."""
        dim, mlp = self.dim, self.config.mlp_dim
        expanded = self.precision.activation * (4 * dim**2 + 2 * dim * mlp) * self.precision.is_expanded
        return self.precision.activation * (3 * self.sequence.total * dim + chunk * (dim + mlp)) + expanded

    def _norm_bytes(self) -> int:
        """Modulated norm of all tokens: the input of the fused projection. A product in fp8 is made apart."""
        total = self.sequence.total
        normed = self._input_bytes(total, self.dim, from_residual=True)
        if not self._is_fp8:
            return normed
        product = self.precision.activation * 3 * total * self.dim
        return max(normed + _QUANTIZING_BYTES, self._input_bytes(total, self.dim) + product)

    @property
    def _is_fp8(self) -> bool:
        return self.precision.is_quantized and not self.precision.is_fused

    def _attention_bytes(self, chunk: int) -> int:
        """Attention, and the normed input that a block keeps for its MLP where it takes all tokens at once."""
        kept = self._input_bytes(self.sequence.total, self.dim) if chunk == self.sequence.total else 0
        sizes = {"float": self._float_attention_bytes(), "int8": self._int8_attention_bytes()}
        return kept + sizes.get(self.attention, max(sizes.values()))

    def _float_attention_bytes(self) -> int:
        """Normed and rotated q and k, the result, and the logarithms of its sums."""
        total = self.sequence.total
        return self.precision.activation * 3 * total * self.dim + 4 * self.config.num_attention_heads * total

    def _int8_attention_bytes(self) -> int:
        """q and k in int8 with scales for 128 and 64 rows, values in fp16, and the mean key of every block."""
        config, total = self.config, self.sequence.total
        scales = 4 * config.num_attention_heads * (-(-total // 128) + -(-total // 64))
        means = 4 * self.dim * (config.num_layers + config.num_single_layers)
        return 2 * total * self.dim + 2 * align(total, 64) * self.dim + scales + means

    def _product_bytes(self, chunk: int) -> int:
        """The attention's projection of the latent tokens, or the MLP of a chunk."""
        dim, mlp, rows = self.dim, self.config.mlp_dim, self.sequence.latent
        product = 0 if self.precision.is_fused else self.precision.activation * dim
        projection = rows * product + self._input_bytes(rows, dim, is_copied=False)
        normed = self._input_bytes(chunk, dim, from_residual=True)
        output = chunk * product + self._input_bytes(chunk, dim + mlp, is_copied=False) + normed
        if not self._is_fp8:
            return max(projection, output)
        hidden = chunk * self.precision.activation * mlp + self._input_bytes(chunk, dim)
        return max(projection + _QUANTIZING_BYTES, output + _QUANTIZING_BYTES, hidden)

    def _head_bytes(self) -> int:
        """Modulated norm of the noisy tokens, a part of it in fp32, and its projection, before and after joining."""
        noisy = self.sequence.noisy
        part = 4 * min(noisy, _FP32_HEAD_TOKENS) * self.dim
        return self.precision.residual * noisy * self.dim + part + 2 * 4 * self.sequence.latent_values

    def _input_bytes(
        self, rows: int, width: int, *, from_residual: bool = False, is_copied: bool = True
    ) -> int:
        """A product's input, beside the norm that it was made from.

        It is quantized with up to two scales a row, or cast where the residual stream has another dtype.
        """
        precision = self.precision
        if precision.is_quantized:
            normed = precision.residual if from_residual and not precision.is_fused else 0
            return rows * ((1 + normed) * width + 8)
        if not is_copied:
            return 0
        is_cast = from_residual and precision.residual != precision.activation
        return rows * width * (precision.activation + precision.residual * is_cast)
