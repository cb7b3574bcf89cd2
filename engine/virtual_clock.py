"""The streamer on a virtual clock: how long compute would wait, from a copy rate and the units' compute times."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .copies import StreamCopies
from .ring import RingSchedule
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


def block_groups(num_dual_blocks: int, num_single_blocks: int) -> list[tuple[int, ...]]:
    """Units that are held at the same time, in execution order: two for a dual-stream block, one for the others."""
    dual = [(2 * block, 2 * block + 1) for block in range(num_dual_blocks)]
    return [*dual, *((2 * num_dual_blocks + block,) for block in range(num_single_blocks))]


def simulate(
    schedule: RingSchedule,
    groups: Iterable[Sequence[int]],
    *,
    copy_seconds: Sequence[float],
    compute_seconds: Sequence[float],
    num_passes: int = 1,
) -> list[UnitTiming]:
    """Timeline of ``num_passes`` steps, by the code that runs the real ones; copies and compute never disturb each other.

    Args:
        schedule: a fresh one.
        groups: units that are held at the same time, see :func:`block_groups`.
        copy_seconds: of each unit.
        compute_seconds: of each unit.
        num_passes: steps.
    """
    groups = list(groups)
    compute, copy, log = VirtualStream(), VirtualStream(), EventLog()
    copies = StreamCopies(compute, copy, _TimedWeights(copy, copy_seconds), torch.device("meta"))
    copies.allocate([1] * schedule.num_slots)
    pipeline = SlotPipeline(schedule, copies, log)
    for group in groups * num_passes:
        for unit in group:
            pipeline.acquire(unit)
        compute.seconds += sum(compute_seconds[unit] for unit in group)
        for unit in group:
            pipeline.release(unit)
    return log.timings()
