"""Predicted seconds of a step and of a section: arithmetic, memory traffic and copies against what the card can do."""

from dataclasses import dataclass, replace

from ..families.framepack.denoise_bytes import DenoiseShape, Precision, num_units, unit_bytes
from ..families.framepack.transformer_config import TransformerConfig
from .machine import Card

# Shares of a card's best rate that good kernels reach: matrix products of cuBLAS in 16 bit and of Triton in 8 bit,
# convolutions of the VAE, and attention by architecture (16-bit, 8-bit); on Hopper far less than its products do.
_GEMM_16, _GEMM_8, _CONVOLUTION = 0.90, 0.65, 0.50
_ATTENTION = {90: (0.40, 0.37)}
_GEFORCE_ATTENTION = (0.90, 0.70)
# Passes over the residual stream of a block with fused kernels: norm, projections' inputs and outputs, residual.
_PASSES = 8
_BANDWIDTH = 0.80
# GB/s of a copy from pageable memory through pinned staging, and of reading a good NVMe disk.
STAGED_RATE, DISK_RATE = 6.0, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one step.

    Attributes:
        products: of the matrix products.
        attention: of the joint attention.
        traffic: of what is bound by the card's memory.
        copies: of the units' copies to the card, which run beside the arithmetic.
        exposed: of copies that the arithmetic waits for.
    """

    products: float
    attention: float
    traffic: float
    copies: float
    exposed: float = 0.0

    @property
    def compute(self) -> float:
        return self.products + self.attention + self.traffic

    @property
    def total(self) -> float:
        return self.compute + self.exposed


def step_time(
    shape: DenoiseShape, card: Card, *, copied_bytes: int, tier: str, ring: int = 0, num_pairs: int = 0
) -> StepTime:
    """Time of a step that copies ``copied_bytes`` of weights from host tier ``tier``.

    Args:
        shape: of the step.
        card: what computes.
        copied_bytes: of all units that are copied.
        tier: where they come from.
        ring: slots that they pass through.
        num_pairs: dual-stream blocks of which both units are copied.
    """
    branches = shape.num_branches
    step = StepTime(
        products=branches * product_flops(shape) / _product_rate(card, shape.precision),
        attention=branches * attention_flops(shape) / _attention_rate(card, shape),
        traffic=branches * traffic_bytes(shape) / (card.bandwidth * 1e9 * _BANDWIDTH),
        copies=branches * copied_bytes / copy_rate(card, tier),
    )
    unit_seconds = max(unit_bytes(shape.config, shape.precision)) / copy_rate(card, tier)
    at_pairs = branches * num_pairs * exposed_seconds(shape, card, unit_seconds, ring)
    return replace(step, exposed=_waits(shape.config, step, at_pairs))


def _waits(config: TransformerConfig, step: StepTime, at_pairs: float) -> float:
    """Dual-stream blocks compute as long as the others and need twice the copies: each kind can be bound by them.

    Args:
        config: of the model.
        step: without waits; residents are spread evenly.
        at_pairs: waits in the dual-stream blocks that come of the order alone.
    """
    num_dual, num_single = config.num_layers, config.num_single_layers
    in_dual, copied_in_dual = num_dual / (num_dual + num_single), 2 * num_dual / num_units(config)
    dual = max(at_pairs, copied_in_dual * step.copies - in_dual * step.compute)
    single = (1 - copied_in_dual) * step.copies - (1 - in_dual) * step.compute
    return dual + max(single, 0.0)


def exposed_seconds(shape: DenoiseShape, card: Card, unit_seconds: float, ring: int) -> float:
    """What compute waits at a dual-stream block whose two units take ``unit_seconds`` each to copy, fewer than it computes.

    The block takes its second unit after the latent tokens' projection, and gives its first one back before the condition
    tokens' MLP. Between the two it holds both, so that a ring of 3 has a slot for one unit of the next block, a ring of 4 for
    both, and a ring of 2 for none.
    """
    dim, mlp = float(shape.dim), shape.dim * shape.config.mlp_ratio
    rate, sequence = _product_rate(card, shape.precision), shape.sequence
    projection = 2 * 3 * dim**2 * sequence.latent / rate
    last_mlp = 2 * (dim**2 + 2 * dim * mlp) * sequence.condition / rate
    if ring == 3:
        return max(unit_seconds - projection - last_mlp, 0.0)
    if ring == 2:
        return max(unit_seconds - last_mlp, 0.0) + max(unit_seconds - projection, 0.0)
    return 0.0


def copy_rate(card: Card, tier: str) -> float:
    """Bytes a second from host tier "pinned", "staged" or "disk"."""
    limits = {"staged": STAGED_RATE, "disk": DISK_RATE}
    return 1e9 * min(card.h2d, limits.get(tier, card.h2d))


def decode_seconds(flops: float, card: Card) -> float:
    """Of VAE arithmetic, in fp16."""
    return flops / (card.bf16 * 1e12 * _CONVOLUTION)


def product_flops(shape: DenoiseShape) -> float:
    """Of the blocks' linear layers: every token meets one unit's worth of weights per block."""
    config, dim = shape.config, float(shape.dim)
    weights = 4 * dim**2 + 2 * dim * (dim * config.mlp_ratio)
    return 2 * weights * shape.sequence.total * (config.num_layers + config.num_single_layers)


def attention_flops(shape: DenoiseShape) -> float:
    """Of scores and weighted sums."""
    config = shape.config
    blocks = config.num_layers + config.num_single_layers
    return 4.0 * shape.sequence.total**2 * shape.dim * blocks


def traffic_bytes(shape: DenoiseShape) -> float:
    """Of the residual stream through fused kernels."""
    config = shape.config
    blocks = config.num_layers + config.num_single_layers
    return float(_PASSES * blocks * shape.sequence.total * shape.dim * shape.precision.residual)


def _product_rate(card: Card, precision: Precision) -> float:
    if precision.is_quantized and not precision.is_fused:
        return 1e12 * (card.fp8 or card.bf16) * _GEMM_8
    if precision.is_quantized:
        return 1e12 * card.int8 * _GEMM_8
    # fp32 runs as TF32 at half the rate of bf16.
    share = 0.5 if precision.activation == 4 else 1.0
    return 1e12 * card.bf16 * _GEMM_16 * share


def _attention_rate(card: Card, shape: DenoiseShape) -> float:
    dense, quantized = _ATTENTION.get(card.capability, _GEFORCE_ATTENTION)
    if shape.attention != "float":
        # Half of it in int8, half in fp16 with fp16 accumulation.
        return 1e12 * quantized * 2 / (1 / card.int8 + 1 / card.fp16_accumulate)
    share = 0.5 if shape.precision.activation == 4 else 1.0
    return 1e12 * card.bf16 * dense * share
