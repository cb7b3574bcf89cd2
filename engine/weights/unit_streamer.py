"""Units through a fixed amount of memory: a ring of slots that is filled while the compute goes on."""

import logging
from collections.abc import Collection, Sequence
from functools import partial

import torch

from ..model.units import Unit, UnitLayout
from ..planning.ring import RingSchedule
from .device_copies import StreamCopies
from .unit_timeline import EventLog

_logger = logging.getLogger(__name__)


class SlotPipeline:
    """Runs a :class:`RingSchedule`: asks for every copy as early as its slot allows."""

    def __init__(self, schedule: RingSchedule, copies: StreamCopies, log: EventLog | None = None) -> None:
        self._schedule = schedule
        self._copies = copies
        self._log = log

    def prefetch(self) -> None:
        """Ask for all copies that have a slot."""
        for unit, slot in self._schedule.fills():
            span = self._copies.fill(unit, slot)
            if self._log is not None:
                self._log.copied(unit, span)

    def acquire(self, unit: int) -> int:
        """Slot of ``unit``, from which compute may read."""
        for slot in self._schedule.seek(unit):
            self._copies.free(slot)
        self.prefetch()
        slot = self._schedule.acquire(unit)
        if self._log is None:
            self._copies.wait(slot)
            return slot
        wanted = self._copies.compute.record()
        self._copies.wait(slot)
        self._log.acquired(unit, slot, wanted, self._copies.compute.record())
        return slot

    def release(self, unit: int) -> None:
        """Let ``unit`` go: its slot may be filled again once the compute issued so far is done."""
        slot = self._schedule.release(unit)
        if self._log is not None:
            self._log.released(unit, self._copies.compute.record())
        if slot is not None:
            self._copies.free(slot)
        self.prefetch()


class Streamer:
    """Units in a ring of slots and, some of them, in slots of their own; a :class:`UnitSource`.

    The order is cyclic: while the last units of a step compute, the first ones of the next are copied. Steps that are
    skipped ask for nothing and copy nothing. A pass that is left before its end costs its copies, nothing else.

    Use it from one thread at a time. The memory is allocated when the first unit is asked for.

    Attributes:
        has_failed: a copy failed, such as a read from a damaged file; close it, it gives no unit any more.
    """

    def __init__(
        self,
        layouts: Sequence[UnitLayout],
        copies: StreamCopies,
        *,
        ring: int,
        residents: Collection[int] = (),
        log: EventLog | None = None,
    ) -> None:
        """Plan the slots.

        Args:
            layouts: of all units in execution order.
            copies: fills slots; owned from now on.
            ring: slots that are filled again and again, at least 2; 3 keeps a copy going beside most blocks.
            residents: units that are copied once, see :func:`spread_evenly`.
            log: gets the events of every copy and use.
        """
        self.has_failed = False
        self._layouts = layouts
        self._copies = copies
        self._log = log
        self._new_schedule = partial(RingSchedule, len(layouts), ring=ring, residents=residents)
        self._slot_bytes = _slot_sizes(self._new_schedule(), [layout.num_bytes for layout in layouts])
        self._slots: list[torch.Tensor] = []
        self._pipeline: SlotPipeline | None = None
        self._units: dict[tuple[int, int], Unit] = {}

    @property
    def num_bytes(self) -> int:
        """Memory of all slots."""
        return sum(self._slot_bytes)

    def prefetch(self) -> None:
        """Allocate the memory if need be and start copying."""
        self._open().prefetch()

    def acquire(self, index: int) -> Unit:
        pipeline = self._open()
        try:
            slot = pipeline.acquire(index)
        except Exception:
            self.has_failed = True
            raise
        if (index, slot) not in self._units:
            self._units[index, slot] = self._layouts[index].bind(self._slots[slot])
        return self._units[index, slot]

    def release(self, index: int) -> None:
        self._open().release(index)

    def suspend(self) -> None:
        """Give the memory back; the next unit that is asked for allocates it and copies the residents again.

        Where a copy that nobody waited for has failed, this closes: the error is of no job any more.
        """
        self._units, self._slots, self._pipeline = {}, [], None
        try:
            self._copies.give_up()
        except Exception as error:
            _logger.warning("a copy failed (%s): the units are opened anew", error)
            self.has_failed = True
            self.close()

    def close(self) -> None:
        """Stop copying; give back the memory and what the weights hold."""
        self._units, self._slots, self._pipeline = {}, [], None
        self._copies.close()

    def _open(self) -> SlotPipeline:
        if self._pipeline is None:
            self._slots = self._copies.allocate(self._slot_bytes)
            self._pipeline = SlotPipeline(self._new_schedule(), self._copies, self._log)
        return self._pipeline


def _slot_sizes(schedule: RingSchedule, unit_bytes: Sequence[int]) -> list[int]:
    streamed = [size for unit, size in enumerate(unit_bytes) if unit not in schedule.residents]
    own = [unit_bytes[unit] for unit in schedule.residents]
    return [max(streamed, default=0)] * schedule.ring + own
