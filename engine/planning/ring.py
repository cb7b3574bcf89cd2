"""Which unit lies in which slot, and which is copied next: integers only."""

from collections import deque
from collections.abc import Collection

_MIN_RING = 2


def spread_evenly(num_units: int, num_residents: int) -> tuple[int, ...]:
    """``num_residents`` of the units, at even distances through the order: the demand for copies stays flat."""
    if not 0 <= num_residents <= num_units:
        raise ValueError(f"num_residents must be 0 to num_units = {num_units}, got {num_residents}")
    return tuple(i * num_units // num_residents for i in range(num_residents))


class RingSchedule:
    """Slots of a cyclic order of units: a ring that is filled again and again, and one slot for each resident.

    Units are used in order, over and over; a ring slot holds the next one of the order that is not resident.

    Attributes:
        num_units: units of the order.
        ring: ring slots; they come first. 0 where all units are resident.
        residents: units that keep their slot, in order; resident k has slot ``ring + k``.
    """

    def __init__(self, num_units: int, *, ring: int, residents: Collection[int] = ()) -> None:
        """Units that a ring of this size holds all at once become residents.

        Raises:
            ValueError: a ring of fewer than 2 slots (a block may need two units), or residents that do not exist.
        """
        outside = sorted(set(residents) - set(range(num_units)))
        if outside:
            raise ValueError(f"residents must be units 0 to {num_units - 1}, got {outside}")
        is_whole = num_units - len(set(residents)) <= ring
        if not is_whole and ring < _MIN_RING:
            raise ValueError(f"ring must be at least {_MIN_RING} slots, got {ring}")
        self.num_units = num_units
        self.ring = 0 if is_whole else ring
        self.residents = tuple(range(num_units)) if is_whole else tuple(sorted(set(residents)))
        self._own_slots = {unit: self.ring + i for i, unit in enumerate(self.residents)}
        self._slots: dict[int, int] = {}
        self._empty = deque(range(self.ring))
        self._held: set[int] = set()
        self._next_fill = self._next_use = 0

    @property
    def num_slots(self) -> int:
        return self.ring + len(self.residents)

    def seek(self, unit: int) -> list[int]:
        """Expect ``unit`` next; the ring slots that are given up because a pass was left before its end.

        Does nothing in the middle of the order. A pass begins with unit 0, when nothing is held.
        """
        if not 0 <= unit < self.num_units:
            raise IndexError(f"unit must be 0 to {self.num_units - 1}, got {unit}")
        is_next = unit == self._next_use
        if is_next and (unit > 0 or not self._held):
            return []
        abandoned = [slot for held in sorted(self._held) if (slot := self.release(held)) is not None]
        if not is_next:
            self._slots = {kept: slot for kept, slot in self._slots.items() if kept in self._own_slots}
            self._empty = deque(range(self.ring))
            self._next_fill = self._next_use = unit
        return abandoned

    def fills(self) -> list[tuple[int, int]]:
        """(unit, slot) of the copies that can be asked for now, in order; they count as asked for."""
        found: list[tuple[int, int]] = []
        for _ in range(self.num_units):
            unit = self._next_fill
            is_resident, is_present = unit in self._own_slots, unit in self._slots
            if not is_resident and (is_present or not self._empty):
                break
            if not is_present:
                self._slots[unit] = self._own_slots[unit] if is_resident else self._empty.popleft()
                found.append((unit, self._slots[unit]))
            self._next_fill = (unit + 1) % self.num_units
        return found

    def acquire(self, unit: int) -> int:
        """Slot of ``unit``, which stays there until it is released."""
        if unit not in self._slots:
            raise RuntimeError(
                f"a ring of {self.ring} slots cannot hold more units at once: release one before acquiring {unit}"
            )
        self._held.add(unit)
        self._next_use = (unit + 1) % self.num_units
        return self._slots[unit]

    def release(self, unit: int) -> int | None:
        """The ring slot that ``unit`` leaves; None for a resident."""
        if unit not in self._held:
            raise RuntimeError(f"unit {unit} cannot be released: it was not acquired")
        self._held.remove(unit)
        if unit in self._own_slots:
            return None
        slot = self._slots.pop(unit)
        self._empty.append(slot)
        return slot
