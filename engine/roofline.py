"""Predicted seconds of a step and of a section: arithmetic, memory traffic and copies against what the card can do."""

from dataclasses import dataclass

from .cards import Card
from .footprint import DenoiseShape, Precision

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
        copies: of the units' copies to the card.
        is_overlapped: copies run beside the arithmetic.
    """

    products: float
    attention: float
    traffic: float
    copies: float
    is_overlapped: bool

    @property
    def compute(self) -> float:
        return self.products + self.attention + self.traffic

    @property
    def total(self) -> float:
        if self.is_overlapped:
            return max(self.compute, self.copies)
        return self.compute + self.copies


def step_time(
    shape: DenoiseShape, card: Card, *, copied_bytes: int, tier: str, is_overlapped: bool
) -> StepTime:
    """Time of a step that copies ``copied_bytes`` of weights from host tier ``tier``."""
    branches = shape.num_branches
    return StepTime(
        products=branches * product_flops(shape) / _product_rate(card, shape.precision),
        attention=branches * attention_flops(shape) / _attention_rate(card, shape),
        traffic=branches * traffic_bytes(shape) / (card.bandwidth * 1e9 * _BANDWIDTH),
        copies=branches * copied_bytes / copy_rate(card, tier),
        is_overlapped=is_overlapped,
    )


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
