"""Copies of units into slots, beside the compute that uses them.

Order, the same for all: a copy into a slot begins after the slot's last ``free``, compute on a slot begins after the
slot's copy, copies run in the order in which they are asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .host_tiers import HostBuffer, HostWeights, PinnedWeights
from .work_streams import CallerStream, CudaStream, Event, Stream, ThreadStream

# One is read from disk, one is copied, one is ready: the two devices need not take turns.
_NUM_BUFFERS = 3


@dataclass(slots=True)
class CopySpan:
    """Begin and end of a copy; set when the copy has been enqueued."""

    start: Event | None = None
    end: Event | None = None


class StreamCopies:
    """Fills slots of the device's memory over two streams, straight from the weights on the host.

    Attributes:
        compute: the stream that uses the slots.
    """

    def __init__(self, compute: Stream, copy: Stream, weights: HostWeights, device: torch.device) -> None:
        self.compute = compute
        self._copy = copy
        self._weights = weights
        self._device = device
        self._slots: list[Tensor] = []
        self._free: list[Event | None] = []
        self._ready: list[Event | None] = []

    def allocate(self, sizes: Sequence[int]) -> list[Tensor]:
        """One slot (uint8) for each size in bytes; all earlier ones are given up, once nothing uses them."""
        for event in (*self._ready, *self._free):
            if event is not None:
                event.synchronize()
        self._slots = []
        # Work in threads is not in inference mode, which a job may be in, and could not write to its tensors.
        with torch.inference_mode(False):
            arena = torch.empty(sum(sizes), dtype=torch.uint8, device=self._device)
        # The memory may have been given back by compute that has not run yet.
        self._copy.wait(self.compute.record())
        self._slots = list(arena.split(list(sizes)))
        self._free = [None] * len(sizes)
        self._ready = [None] * len(sizes)
        return self._slots

    def give_up(self) -> None:
        """Give back the memory of all slots, once nothing uses them; raises what a copy failed with."""
        self.allocate([])

    def fill(self, unit: int, slot: int) -> CopySpan:
        """Copy ``unit`` into ``slot`` as soon as the slot is free and the copies before this one are done."""
        return self._enqueue(slot, partial(self._weights.read, unit, self._slots[slot]))

    def _enqueue(self, slot: int, transfer: Callable[[], object]) -> CopySpan:
        free = self._free[slot]
        if free is not None:
            self._copy.wait(free)
        start = self._copy.record()
        self._copy.run(transfer)
        self._ready[slot] = end = self._copy.record()
        return CopySpan(start, end)

    def wait(self, slot: int) -> None:
        """Compute that is issued from now on begins when the last copy into ``slot`` is done.

        Raises:
            Exception: what a copy failed with.
        """
        ready = self._ready[slot]
        assert ready is not None, f"slot {slot} was never filled"
        self.compute.wait(ready)

    def free(self, slot: int) -> None:
        """Allow copies into ``slot`` once the compute issued so far is done."""
        self._free[slot] = self.compute.record()

    def close(self) -> None:
        """Stop copying and give up the slots; what the weights hold is freed too."""
        self._copy.close()
        self._slots = []
        self._weights.close()


class StagedCopies(StreamCopies):
    """To CUDA through a small ring of page-locked buffers, which a thread of its own fills from the host."""

    def __init__(
        self,
        compute: Stream,
        copy: Stream,
        reader: Stream,
        weights: HostWeights,
        device: torch.device,
        buffers: Sequence[HostBuffer],
    ) -> None:
        super().__init__(compute, copy, weights, device)
        self._reader = reader
        self._buffers = list(buffers)
        self._emptied: list[Event | None] = [None] * len(buffers)
        self._num_read = 0
        self._staged: dict[int, Event] = {}

    def fill(self, unit: int, slot: int) -> CopySpan:
        span = CopySpan()
        self._reader.run(partial(self._stage, unit, slot, span))
        self._staged[slot] = self._reader.record()
        return span

    def _stage(self, unit: int, slot: int, span: CopySpan) -> None:
        """In the reader's thread: fill the next buffer, then enqueue its copy."""
        index = self._num_read % len(self._buffers)
        self._num_read += 1
        emptied, buffer = self._emptied[index], self._buffers[index].tensor
        if emptied is not None:
            emptied.synchronize()
        self._weights.read(unit, buffer)
        target = self._slots[slot]
        copy = self._enqueue(slot, partial(target.copy_, buffer[: target.numel()], non_blocking=True))
        self._emptied[index] = copy.end
        span.start, span.end = copy.start, copy.end

    def wait(self, slot: int) -> None:
        # The copy's event does not exist before the reader has enqueued the copy.
        self._staged[slot].synchronize()
        super().wait(slot)

    def allocate(self, sizes: Sequence[int]) -> list[Tensor]:
        self._reader.record().synchronize()
        return super().allocate(sizes)

    def close(self) -> None:
        # The copies first: the reader may wait for one.
        self._copy.close()
        self._reader.close()
        super().close()
        for buffer in self._buffers:
            buffer.close()


def make_copies(
    weights: HostWeights, device: torch.device, *, unit_bytes: int, is_timed: bool = False
) -> StreamCopies:
    """The copy engine for ``device``: a thread on the CPU, a copy stream on CUDA.

    Args:
        weights: the units' blobs.
        device: where the slots lie.
        unit_bytes: size of the largest unit.
        is_timed: whether events are timed on CUDA, for an :class:`EventLog`.
    """
    if device.type == "cpu":
        return StreamCopies(CallerStream(), ThreadStream("isoframe-copies"), weights, device)
    compute = CudaStream(device, is_timed=is_timed)
    copy = CudaStream(device, torch.cuda.Stream(device), is_timed=is_timed)
    if isinstance(weights, PinnedWeights):
        return StreamCopies(compute, copy, weights, device)
    buffers = [HostBuffer(unit_bytes, is_locked=True) for _ in range(_NUM_BUFFERS)]
    return StagedCopies(compute, copy, ThreadStream("isoframe-reader"), weights, device, buffers)
