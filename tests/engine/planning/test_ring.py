"""Which unit is copied into which slot, and when."""

import pytest

from isoframe.engine.planning.ring import RingSchedule, spread_evenly


def use(schedule: RingSchedule, unit: int) -> list[tuple[int, int]]:
    """Acquire and release ``unit``; the copies that this allows."""
    schedule.acquire(unit)
    schedule.release(unit)
    return schedule.fills()


def test_the_ring_is_filled_ahead_in_order() -> None:
    schedule = RingSchedule(6, ring=3)
    assert schedule.fills() == [(0, 0), (1, 1), (2, 2)]
    assert schedule.fills() == []
    assert use(schedule, 0) == [(3, 0)]
    assert use(schedule, 1) == [(4, 1)]


def test_the_first_units_of_the_next_pass_are_copied_during_the_last_of_this_one() -> None:
    schedule = RingSchedule(4, ring=3)
    schedule.fills()
    assert [use(schedule, unit) for unit in range(4)] == [[(3, 0)], [(0, 1)], [(1, 2)], [(2, 0)]]


def test_residents_are_copied_once_in_their_own_slots() -> None:
    schedule = RingSchedule(6, ring=2, residents=[4, 1])
    fills = schedule.fills()
    for unit in [*range(6), *range(6)]:
        fills += use(schedule, unit)
    assert schedule.num_slots == 4
    assert [fill for fill in fills if fill[0] in (1, 4)] == [(1, 2), (4, 3)]
    assert all(slot < 2 for unit, slot in fills if unit not in (1, 4))


def test_units_that_fit_the_ring_all_at_once_are_copied_once() -> None:
    schedule = RingSchedule(5, ring=3, residents=[0, 3])
    fills = schedule.fills()
    for unit in [*range(5), *range(5)]:
        fills += use(schedule, unit)
    assert sorted(fills) == [(unit, unit) for unit in range(5)]


def test_a_held_unit_keeps_its_slot() -> None:
    schedule = RingSchedule(6, ring=3)
    schedule.fills()
    schedule.acquire(0)
    schedule.acquire(1)
    assert schedule.release(1) == 1
    assert schedule.fills() == [(3, 1)]
    assert schedule.release(0) == 0
    assert schedule.fills() == [(4, 0)]


def test_more_units_than_slots_at_once_are_refused() -> None:
    schedule = RingSchedule(6, ring=2)
    for unit in range(2):
        schedule.fills()
        schedule.acquire(unit)
    schedule.fills()
    with pytest.raises(RuntimeError, match="ring of 2 slots cannot hold more units at once"):
        schedule.acquire(2)


def test_a_pass_that_was_left_gives_up_what_it_held() -> None:
    schedule = RingSchedule(6, ring=3)
    schedule.fills()
    schedule.acquire(0)
    schedule.acquire(1)
    assert schedule.seek(0) == [0, 1]
    assert schedule.fills() == [(0, 0), (1, 1), (2, 2)]


def test_a_pass_that_was_left_in_its_last_unit_keeps_what_comes_next() -> None:
    schedule = RingSchedule(4, ring=3)
    schedule.fills()
    for unit in range(3):
        use(schedule, unit)
    schedule.acquire(3)
    assert schedule.seek(0) == [0]
    assert schedule.fills() == [(2, 0)]


@pytest.mark.parametrize(
    ("ring", "residents", "message"),
    [(1, (), "ring must be at least 2 slots, got 1"), (3, (7, -1), r"residents must be units 0 to 5, got \[-1, 7\]")],
)  # fmt: skip
def test_impossible_schedules_are_refused(ring: int, residents: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RingSchedule(6, ring=ring, residents=residents)


def test_residents_are_spread_at_even_distances() -> None:
    assert spread_evenly(80, 4) == (0, 20, 40, 60)
    assert spread_evenly(7, 3) == (0, 2, 4)
    assert spread_evenly(5, 0) == ()
    assert spread_evenly(5, 5) == (0, 1, 2, 3, 4)
    with pytest.raises(ValueError, match="num_residents must be 0 to num_units = 5, got 6"):
        spread_evenly(5, 6)
