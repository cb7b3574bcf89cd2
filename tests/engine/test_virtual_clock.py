"""The streamer on a virtual clock: when copies hide behind compute, and what they cost when they do not."""

import pytest

from isoframe.engine.ring import RingSchedule, spread_evenly
from isoframe.engine.timeline import UnitTiming, exposed_wait
from isoframe.engine.virtual_clock import block_groups, simulate


def run(
    groups: list[tuple[int, ...]],
    *,
    ring: int,
    copy: float,
    compute: float,
    num_residents: int = 0,
    num_passes: int = 2,
) -> list[UnitTiming]:
    num_units = sum(map(len, groups))
    schedule = RingSchedule(num_units, ring=ring, residents=spread_evenly(num_units, num_residents))
    return simulate(
        schedule,
        groups,
        copy_seconds=[copy] * num_units,
        compute_seconds=[compute] * num_units,
        num_passes=num_passes,
    )


@pytest.mark.parametrize("ring", [2, 3, 4])
@pytest.mark.parametrize("compute", [1.0, 1.5])
def test_nothing_waits_after_the_first_unit_when_compute_is_as_slow_as_the_copy(
    ring: int, compute: float
) -> None:
    timings = run(block_groups(0, 10), ring=ring, copy=1.0, compute=compute)
    assert timings[0].compute_start == 1.0
    assert exposed_wait(timings[1:]) == 0
    assert timings[-1].compute_end == 1.0 + 20 * compute


def test_copies_set_the_pace_when_they_are_slower() -> None:
    timings = run(block_groups(0, 10), ring=3, copy=2.0, compute=1.0)
    assert timings[-1].compute_end == 20 * 2.0 + 1.0


def test_evenly_spread_residents_take_their_share_of_the_copies() -> None:
    timings = run(block_groups(0, 12), ring=3, copy=2.0, compute=1.0, num_residents=6, num_passes=3)
    second_pass_on = timings[12:]
    assert exposed_wait(second_pass_on) == 0


def test_blocks_of_two_units_need_a_ring_of_four_to_hide_the_copies() -> None:
    waits = {
        ring: exposed_wait(run(block_groups(10, 0), ring=ring, copy=1.0, compute=1.0)[2:])
        for ring in (2, 3, 4)
    }
    assert waits == {2: 38.0, 3: 19.0, 4: 0.0}
