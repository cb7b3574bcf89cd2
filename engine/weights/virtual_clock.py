"""The streamer on a virtual clock: how long compute would wait, from a copy rate and the units' compute times."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..families.family import BlockWork, StepSizes
from ..planning.plan import Plan
from ..planning.ring import RingSchedule
from ..planning.roofline import StepTime, copy_rate
from .device_copies import StreamCopies
from .unit_streamer import SlotPipeline
from .unit_timeline import EventLog, UnitTiming


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
        """Return at once: virtual work is done when it is issued."""


@dataclass(frozen=True, slots=True)
class _TimedWeights:
    """Weights whose copies only take time."""

    stream: VirtualStream
    seconds: Sequence[float]

    def read(self, unit: int, out: Tensor) -> None:
        self.stream.seconds += self.seconds[unit]

    def close(self) -> None:
        """Do nothing: no memory is held."""


def simulate(
    schedule: RingSchedule,
    blocks: Iterable[BlockWork],
    *,
    copy_seconds: Sequence[float],
    num_passes: int = 1,
) -> list[UnitTiming]:
    """Timeline of ``num_passes`` steps, by the code that runs the real ones; copies and compute never disturb each other.

    Args:
        schedule: a fresh one.
        blocks: their seconds, in execution order.
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


def predict_timeline(plan: Plan, shape: StepSizes, num_passes: int = 3) -> list[UnitTiming]:
    """Timeline of the first steps of ``plan``, whose loop has ``shape``, from the roofline of its card."""
    num_units = plan.num_units
    schedule = RingSchedule(num_units, ring=plan.ring, residents=plan.residents)
    copy = max(shape.weights.units) / copy_rate(plan.card, plan.tier)
    return simulate(
        schedule, roofline_paces(shape, plan.step), copy_seconds=[copy] * num_units, num_passes=num_passes
    )


def roofline_paces(shape: StepSizes, step: StepTime) -> list[BlockWork]:
    """Seconds of the blocks of one branch; what memory traffic takes is spread over all of them alike."""
    stretch = step.compute / (step.products + step.attention) / shape.num_branches
    products = stretch * step.products / sum(block.products for block in shape.blocks)
    attention = stretch * step.attention / sum(block.attention for block in shape.blocks)
    return [block.scaled(products, attention) for block in shape.blocks]
