"""Bytes of the denoising loop as formulas: units, tables, activations. ``docs/memory.md`` lists them.

All counts are of memory that is held at the same time, at the moment of a step that holds the most.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...request.config import check_choice
from ...request.sections import NUM_CLEAN_1X, NUM_CLEAN_2X, NUM_CLEAN_4X
from .transformer_config import TransformerConfig

# As in units.UnitLayout, which a test compares.
_TENSOR_ALIGNMENT, _BLOB_ALIGNMENT = 256, 4096
# Latent tensors in fp32 that the sampler keeps: noise, input, velocity, x0, three predictions and a sum.
_SAMPLER_LATENTS = 8
# fp32 copies of the values that are quantized to fp8 at a time, see quant.fp8.
_QUANTIZING_BYTES = 2 * 4 * 2**22
# As in transformer.FP32_HEAD_TOKENS.
_FP32_HEAD_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bytes of a value by what it is for.

    Attributes:
        name: as in a configuration.
        weight: of a unit's weight; a fraction where two share a byte.
        block: weights that share one fp32 scale; 0 for a scale per output row, None for none.
        has_ranges: whether the two input ranges of a single block's output have scales of their own.
        activation: between the residual stream and the products.
        residual: in the residual stream and in all that is computed once.
        is_quantized: a product's input is quantized to one byte a value.
        is_fused: norms quantize at once, and products are added to the residual stream where they are computed.
        is_expanded: the weights of a block are expanded to the activations' dtype before it runs.
    """

    name: str
    weight: float
    block: int | None
    has_ranges: bool = False
    activation: int = 2
    residual: int = 2
    is_quantized: bool = False
    is_fused: bool = False
    is_expanded: bool = False


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision(name="fp32", weight=4, block=None, activation=4, residual=4),
        Precision(name="bf16", weight=2, block=None),
        Precision(name="fp16", weight=2, block=None, residual=4),
        Precision(name="int8", weight=1, block=0, has_ranges=True, is_quantized=True, is_fused=True),
        Precision(name="int8-weight", weight=1, block=0, has_ranges=True, is_expanded=True),
        Precision(name="fp8", weight=1, block=0, is_quantized=True),
        Precision(name="nf4", weight=0.5, block=64, is_expanded=True),
    )
}


def find_precision(name: str, compute_dtype: str = "bf16") -> Precision:
    """The precision called ``name``; one that does not fix the activations' dtype computes in ``compute_dtype``.

    Raises:
        ConfigError: there is no such precision.
    """
    check_choice("precision", name, PRECISIONS)
    if PRECISIONS[name].block is None:
        return PRECISIONS[name]
    computed = PRECISIONS[compute_dtype]
    return replace(PRECISIONS[name], activation=computed.activation, residual=computed.residual)


def num_units(config: TransformerConfig) -> int:
    """Units of a model: two of a dual-stream block, one of a single-stream block."""
    return 2 * config.num_layers + config.num_single_layers


def unit_bytes(config: TransformerConfig, precision: Precision) -> list[int]:
    """Size of every unit's blob in execution order."""
    dim, mlp = config.inner_dim, _mlp_dim(config)
    stream = _blob_bytes([(3 * dim, dim, 1), (dim, dim, 1), (mlp, dim, 1), (dim, mlp, 1)], precision)
    single = _blob_bytes([(3 * dim + mlp, dim, 1), (dim, dim + mlp, 2)], precision)
    return [stream] * (2 * config.num_layers) + [single] * config.num_single_layers


def _blob_bytes(layers: list[tuple[int, int, int]], precision: Precision) -> int:
    """Blob of layers (rows, inputs, input ranges with scales of their own)."""
    total = sum(_align(size, _TENSOR_ALIGNMENT) for layer in layers for size in _tensors(*layer, precision))
    return _align(total, _BLOB_ALIGNMENT)


def _tensors(rows: int, cols: int, ranges: int, precision: Precision) -> Iterator[int]:
    yield int(rows * cols * precision.weight)
    if precision.block is not None:
        per_row = ranges if precision.has_ranges else 1
        yield 4 * rows * (cols // precision.block if precision.block else per_row)
    yield rows * precision.activation


def _align(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _mlp_dim(config: TransformerConfig) -> int:
    return int(config.inner_dim * config.mlp_ratio)


def once_weight_bytes(config: TransformerConfig, precision: Precision) -> int:
    """Weights that a job needs once: modulation, embeddings of time and text, token refiner, image projection."""
    dim, mlp, text = config.inner_dim, _mlp_dim(config), config.text_embed_dim
    modulation = (12 * config.num_layers + 3 * config.num_single_layers + 2) * (dim**2 + dim)
    time = (2 if config.guidance_embeds else 1) * _mlp_params(256, dim, dim)
    time_text = time + _mlp_params(config.pooled_projection_dim, dim, dim)
    block = 4 * (dim**2 + dim) + 2 * (dim**2 + dim) + _mlp_params(dim, mlp, dim) + 4 * dim
    refiner = text * dim + dim + _mlp_params(256, dim, dim) + _mlp_params(text, dim, dim)
    refiner += config.num_refiner_layers * block
    image = _mlp_params(config.image_proj_dim, 3 * dim, dim)
    return precision.residual * (modulation + time_text + refiner + image)


def _mlp_params(inputs: int, hidden: int, outputs: int) -> int:
    return inputs * hidden + hidden + hidden * outputs + outputs


def step_weight_bytes(config: TransformerConfig, precision: Precision) -> int:
    """Weights outside the units that the step loop needs: patch embeddings, head norms, output projection."""
    dim, channels = config.inner_dim, config.in_channels
    cells = (4, 4, 2 * 4 * 4, 4 * 8 * 8)
    patches = sum(dim * channels * cell + dim for cell in cells)
    norms = (4 * config.num_layers + 2 * config.num_single_layers) * config.attention_head_dim
    output = 4 * config.out_channels * (dim + 1)
    # The output projection runs in fp32, from a copy.
    copy = 4 * output if precision.residual == 2 else 0
    return precision.residual * (patches + norms + output) + copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """Token counts of one section's packed sequence.

    Attributes:
        noisy: of the latents that are denoised.
        clean: of the history.
        vision: of the image.
        text: of the prompt.
        latent_values: values of the noisy latents.
    """

    noisy: int
    clean: int
    vision: int
    text: int
    latent_values: int

    @property
    def latent(self) -> int:
        return self.noisy + self.clean

    @property
    def condition(self) -> int:
        return self.vision + self.text

    @property
    def total(self) -> int:
        return self.latent + self.condition


def packed_sequence(
    config: TransformerConfig,
    size: tuple[int, int],
    window: int,
    vision: int,
    text: int,
    num_clean: int = 1 + NUM_CLEAN_1X,
) -> Sequence:
    """Tokens of a section at ``size`` (height, width in pixels) with ``window`` latent frames.

    The start latent is one of the ``num_clean`` known frames at full resolution.
    """
    height, width = size[0] // 8, size[1] // 8
    frame = -(-height // 2) * -(-width // 2)
    clean_2x = -(-NUM_CLEAN_2X // 2) * -(-height // 4) * -(-width // 4)
    clean_4x = -(-NUM_CLEAN_4X // 4) * -(-height // 8) * -(-width // 8)
    return Sequence(
        noisy=window * frame,
        clean=num_clean * frame + clean_2x + clean_4x,
        vision=vision,
        text=text,
        latent_values=config.in_channels * window * height * width,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiseShape:
    """What the step loop's memory depends on.

    Attributes:
        config: the transformer's.
        precision: of its units.
        sequence: tokens.
        num_steps: steps of a section.
        num_branches: 2 with true guidance, else 1.
        step_cache: as in a configuration.
        attention: "float" (any backend on 16 or 32 bit), "int8" (q and k), or "either", where it is measured later.
    """

    config: TransformerConfig
    precision: Precision
    sequence: Sequence
    num_steps: int
    num_branches: int = 1
    step_cache: str = "none"
    attention: str = "float"

    @property
    def dim(self) -> int:
        return self.config.inner_dim

    def embeds_bytes(self) -> int:
        """The encoded prompts and image, which stay for the whole job."""
        config, sequence = self.config, self.sequence
        text = sequence.text * config.text_embed_dim + config.pooled_projection_dim
        image = sequence.vision * config.image_proj_dim
        return self.precision.activation * (self.num_branches * text + image)

    def job_table_bytes(self) -> int:
        """What a job computes once and keeps while it decodes too: modulation, refined text, vision tokens."""
        config, sequence = self.config, self.sequence
        vectors = 12 * config.num_layers + 3 * config.num_single_layers + 2
        rows = self.num_branches * self.num_steps * (vectors + sequence.text) + sequence.vision
        return self.precision.residual * rows * self.dim

    def table_bytes(self) -> int:
        """The tables of the job, and what a section computes once: clean tokens and rotary tables."""
        rotary = 2 * 4 * self.sequence.latent * self.config.attention_head_dim // 2
        return self.job_table_bytes() + self.precision.residual * self.sequence.clean * self.dim + rotary

    def activation_bytes(self, token_chunk: int | None) -> int:
        """Most that a step holds at once, tables and weights left out; None takes all tokens at once."""
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
        dim, mlp = self.dim, _mlp_dim(self.config)
        expanded = self.precision.activation * (4 * dim**2 + 2 * dim * mlp) * self.precision.is_expanded
        return self.precision.activation * (3 * self.sequence.total * dim + chunk * (dim + mlp)) + expanded

    def _norm_bytes(self) -> int:
        """Modulated norm of all tokens: the input of the fused projection. A product in fp8 is made apart."""
        total, normed = (
            self.sequence.total,
            self._input_bytes(self.sequence.total, self.dim, from_residual=True),
        )
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
        return 2 * total * self.dim + 2 * _align(total, 64) * self.dim + scales + means

    def _product_bytes(self, chunk: int) -> int:
        """The attention's projection of the latent tokens, or the MLP of a chunk."""
        dim, mlp, rows = self.dim, _mlp_dim(self.config), self.sequence.latent
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
