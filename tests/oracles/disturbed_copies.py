"""Copy engines for tests: random delays, slots that are poisoned the moment they are freed, and broken orders."""

import random
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from isoframe.engine.weights.device_copies import StagedCopies, StreamCopies
from isoframe.engine.weights.work_streams import CallerStream, Event, HostEvent, Stream, ThreadStream

# All ones are NaN in fp32, fp16 and bf16.
POISON = 255
_LONGEST_DELAY_SECONDS = 2e-4


class LateStream(ThreadStream):
    """Every work begins after a random wait."""

    def __init__(self, name: str, chance: random.Random) -> None:
        super().__init__(name)
        self._chance = chance

    def run(self, work: Callable[[], object]) -> None:
        seconds = self._chance.random() * _LONGEST_DELAY_SECONDS
        super().run(lambda: time.sleep(seconds))
        super().run(work)


class LateCaller(CallerStream):
    """A caller that computes at a random pace: it lingers on what it has, and before it gives it back."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def wait(self, event: Event) -> None:
        super().wait(event)
        time.sleep(self._chance.random() * _LONGEST_DELAY_SECONDS)

    def record(self) -> HostEvent:
        time.sleep(self._chance.random() * _LONGEST_DELAY_SECONDS)
        return super().record()


class PoisonedCopies(StreamCopies):
    """Fills a slot with :data:`POISON` on the compute stream, right before it is free."""

    def free(self, slot: int) -> None:
        self.compute.run(lambda: self._slots[slot].fill_(POISON))
        super().free(slot)

    def allocate(self, sizes: "list[int]") -> list[Tensor]:  # type: ignore[override]  # the streamer passes a list
        slots = super().allocate(sizes)
        for slot in slots:
            slot.fill_(POISON)
        return slots


class PoisonedStagedCopies(PoisonedCopies, StagedCopies):
    """The same for copies through a staging ring."""


class FreeIsNotAwaited(PoisonedCopies):
    """Broken: a copy begins whether or not its slot is free."""

    def free(self, slot: int) -> None:
        super().free(slot)
        self._free[slot] = None


class FreeIsEarly(PoisonedCopies):
    """Broken: ``free`` is recorded before the compute that it must follow."""

    def wait(self, slot: int) -> None:
        super().wait(slot)
        self._early = {**getattr(self, "_early", {}), slot: self.compute.record()}

    def free(self, slot: int) -> None:
        super().free(slot)
        self._free[slot] = self._early[slot]


class ReadyIsNotAwaited(PoisonedCopies):
    """Broken: compute begins whether or not the copy is done."""

    def wait(self, slot: int) -> None:
        pass


class BlobWeights:
    """Blobs in RAM."""

    def __init__(self, blobs: list[Tensor]) -> None:
        self.blobs = blobs
        self.num_reads = 0

    def read(self, unit: int, out: Tensor) -> None:
        self.num_reads += 1
        out[: self.blobs[unit].numel()] = self.blobs[unit]

    def close(self) -> None:
        self.blobs = []


def gate(stream: Stream) -> Callable[[], None]:
    """Stop ``stream`` here until the returned function is called."""
    opened = threading.Event()
    stream.run(opened.wait)
    return opened.set


def numbered_blobs(num_units: int, num_bytes: int = 64) -> list[Tensor]:
    """Blobs whose bytes are all the number of their unit."""
    return [torch.full((num_bytes,), unit, dtype=torch.uint8) for unit in range(num_units)]
