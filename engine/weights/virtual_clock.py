"""The streamer on a virtual clock: how long compute would wait, from a copy rate and the units' compute times."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..families.framepack.denoise_bytes import DenoiseShape, unit_bytes
from ..planning.plan import Plan
from ..planning.ring import RingSchedule
from ..planning.roofline import StepTime, copy_rate, product_flops
from .copies import StreamCopies
from .streaming import SlotPipeline
from .timeline import EventLog, UnitTiming


@dataclass(frozen=True, slots=True)
class VirtualEvent:
    """A point of virtual time."""

    seconds: float

    def synchronize(self) -> None:
        """Virtual time has passed as soon as it is known."""

    def seconds_since(self, origin: "VirtualEvent") -> float:
        return self.seconds - origin.seconds


@dataclass(slots=True)
class VirtualStream:
    """A stream whose work takes the time that the work adds to ``seconds``."""

    seconds: float = 0.0

    def run(self, work: Callable[[], object]) -> None:
        work()

    def record(self) -> VirtualEvent:
        return VirtualEvent(self.seconds)

    def wait(self, event: VirtualEvent) -> None:
        self.seconds = max(self.seconds, event.seconds)

    def close(self) -> None:
        """Nothing is ever pending."""


@dataclass(frozen=True, slots=True)
class _TimedWeights:
    """Weights whose copies only take time."""

    stream: VirtualStream
    seconds: Sequence[float]

    def read(self, unit: int, out: Tensor) -> None:
        self.stream.seconds += self.seconds[unit]

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPace:
    """Seconds of one block, in the order in which :mod:`~isoframe.engine.families.framepack.layers` takes its units and gives them back.

    Attributes:
        units: taken one after the other, each when its projection begins.
        projections: of each unit; the attention's q, k and v.
        attention: while all units are held.
        rests: of each unit, which is given back at its end: the attention's output and the MLP.
    """

    units: tuple[int, ...]
    projections: tuple[float, ...]
    attention: float
    rests: tuple[float, ...]


def block_groups(num_dual_blocks: int, num_single_blocks: int) -> list[tuple[int, ...]]:
    """Units of each block in execution order: two of a dual-stream block, one of the others."""
    dual = [(2 * block, 2 * block + 1) for block in range(num_dual_blocks)]
    return [*dual, *((2 * num_dual_blocks + block,) for block in range(num_single_blocks))]


def block_paces(
    num_dual_blocks: int,
    num_single_blocks: int,
    *,
    projections: tuple[float, float],
    attention: float,
    rests: tuple[float, float],
    single: float,
) -> list[BlockPace]:
    """Paces of a model's blocks: those of the dual-stream ones, and the seconds of a single-stream one."""
    return [
        BlockPace(units=units, projections=projections, attention=attention, rests=rests)
        if len(units) == 2
        else BlockPace(units=units, projections=(0.0,), attention=single, rests=(0.0,))
        for units in block_groups(num_dual_blocks, num_single_blocks)
    ]


def simulate(
    schedule: RingSchedule,
    blocks: Iterable[BlockPace],
    *,
    copy_seconds: Sequence[float],
    num_passes: int = 1,
) -> list[UnitTiming]:
    """Timeline of ``num_passes`` steps, by the code that runs the real ones; copies and compute never disturb each other.

    Args:
        schedule: a fresh one.
        blocks: in execution order.
        copy_seconds: of each unit.
        num_passes: steps.
    """
    blocks = list(blocks)
    compute, copy, log = VirtualStream(), VirtualStream(), EventLog()
    copies = StreamCopies(compute, copy, _TimedWeights(copy, copy_seconds), torch.device("meta"))
    copies.allocate([1] * schedule.num_slots)
    pipeline = SlotPipeline(schedule, copies, log)
    for block in blocks * num_passes:
        for unit, seconds in zip(block.units, block.projections, strict=True):
            pipeline.acquire(unit)
            compute.seconds += seconds
        compute.seconds += block.attention
        for unit, seconds in zip(block.units, block.rests, strict=True):
            compute.seconds += seconds
            pipeline.release(unit)
    return log.timings()


def predict_timeline(plan: Plan, shape: DenoiseShape, num_passes: int = 3) -> list[UnitTiming]:
    """Timeline of the first steps of ``plan``, whose loop has ``shape``, from the roofline of its card."""
    num_units = plan.num_units
    schedule = RingSchedule(num_units, ring=plan.ring, residents=plan.residents)
    copy = max(unit_bytes(shape.config, shape.precision)) / copy_rate(plan.card, plan.tier)
    return simulate(
        schedule, roofline_paces(shape, plan.step), copy_seconds=[copy] * num_units, num_passes=num_passes
    )


def roofline_paces(shape: DenoiseShape, step: StepTime) -> list[BlockPace]:
    """Paces of the blocks of one branch; what memory traffic takes is spread over all of them alike."""
    config, tokens = shape.config, shape.sequence
    dim, mlp = float(shape.dim), shape.dim * config.mlp_ratio
    num_blocks = config.num_layers + config.num_single_layers
    arithmetic = step.products + step.attention
    stretch = step.compute / arithmetic / shape.num_branches
    operation = stretch * step.products / product_flops(shape)
    attention = stretch * step.attention / num_blocks

    def products(weights: float, num_tokens: int) -> float:
        return operation * 2 * weights * num_tokens

    projected, rest = 3 * dim**2, dim**2 + 2 * dim * mlp
    return block_paces(
        config.num_layers,
        config.num_single_layers,
        projections=(products(projected, tokens.latent), products(projected, tokens.condition)),
        attention=attention,
        rests=(products(rest, tokens.latent), products(rest, tokens.condition)),
        single=attention + products(projected + rest, tokens.total),
    )
