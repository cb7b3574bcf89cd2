"""Predicted seconds of a step and of a section: arithmetic, memory traffic and copies against what the card can do."""

from collections import Counter
from dataclasses import dataclass, replace

from ..families.family import StepSizes
from ..model.precision import Precision
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
    shape: StepSizes, card: Card, *, copied_bytes: int, tier: str, ring: int = 0, num_pairs: int = 0
) -> StepTime:
    """Time of a step that copies ``copied_bytes`` of weights from host tier ``tier``.

    Args:
        shape: of the step.
        card: what computes.
        copied_bytes: of all units that are copied.
        tier: where they come from.
        ring: slots that they pass through.
        num_pairs: blocks of two units, both of which are copied.
    """
    branches = shape.num_branches
    step = StepTime(
        products=branches
        * sum(block.products for block in shape.blocks)
        / _product_rate(card, shape.precision),
        attention=branches * sum(block.attention for block in shape.blocks) / _attention_rate(card, shape),
        traffic=branches * _PASSES * shape.stream_bytes() / (card.bandwidth * 1e9 * _BANDWIDTH),
        copies=branches * copied_bytes / copy_rate(card, tier),
    )
    unit_seconds = max(shape.weights.units) / copy_rate(card, tier)
    at_pairs = branches * num_pairs * exposed_seconds(shape, card, unit_seconds, ring)
    return replace(step, exposed=_waits(shape, step, at_pairs))


def _waits(shape: StepSizes, step: StepTime, at_pairs: float) -> float:
    """Blocks compute about as long as each other, and those of two units need twice the copies: each kind can be bound by them.

    Args:
        shape: of the step.
        step: without waits; residents are spread evenly.
        at_pairs: waits in the blocks of two units that come of the order alone.
    """
    counts = Counter(len(block.units) for block in shape.blocks)
    waits = 0.0
    for num_held, count in counts.items():
        copies = num_held * count / len(shape.weights.units) * step.copies
        wait = copies - count / len(shape.blocks) * step.compute
        waits += max(wait, at_pairs if num_held > 1 else 0.0)
    return waits


def exposed_seconds(shape: StepSizes, card: Card, unit_seconds: float, ring: int) -> float:
    """What compute waits at a block of two units that take ``unit_seconds`` each to copy, fewer than the block computes.

    The block takes its second unit after the projection of the first, and gives its first one back before the MLP of the
    second. Between the two it holds both, so that a ring of 3 has a slot for one unit of the next block, a ring of 4 for
    both, and a ring of 2 for none. A block of one unit has no such wait.
    """
    block, rate = max(shape.blocks, key=lambda block: len(block.units)), _product_rate(card, shape.precision)
    projection, last_mlp = block.projections[0] / rate, block.rests[-1] / rate
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
    """Seconds of decoding a section: the VAE's arithmetic, in fp16."""
    return flops / (card.bf16 * 1e12 * _CONVOLUTION)


def _product_rate(card: Card, precision: Precision) -> float:
    if precision.is_quantized and not precision.is_fused:
        return 1e12 * (card.fp8 or card.bf16) * _GEMM_8
    if precision.is_quantized:
        return 1e12 * card.int8 * _GEMM_8
    # fp32 runs as TF32 at half the rate of bf16.
    share = 0.5 if precision.activation == 4 else 1.0
    return 1e12 * card.bf16 * _GEMM_16 * share


def _attention_rate(card: Card, shape: StepSizes) -> float:
    dense, quantized = _ATTENTION.get(card.capability, _GEFORCE_ATTENTION)
    if shape.attention != "float":
        # Half of it in int8, half in fp16 with fp16 accumulation.
        return 1e12 * quantized * 2 / (1 / card.int8 + 1 / card.fp16_accumulate)
    share = 0.5 if shape.precision.activation == 4 else 1.0
    return 1e12 * card.bf16 * dense * share
