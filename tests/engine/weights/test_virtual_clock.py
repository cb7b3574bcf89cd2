"""The streamer on a virtual clock: when copies hide behind compute, and what they cost when they do not."""

from dataclasses import replace

import pytest
from block_paces import block_paces

from isoframe.engine.families.family import BlockWork
from isoframe.engine.families.framepack.model_sizes import published_shapes
from isoframe.engine.families.framepack.step_sizes import DenoiseShape
from isoframe.engine.planning.machine import Machine, find_card
from isoframe.engine.planning.planned_job import PlannedJob
from isoframe.engine.planning.ring import RingSchedule, spread_evenly
from isoframe.engine.planning.roofline import copy_rate, exposed_seconds, step_time
from isoframe.engine.request.config import SamplingConfig
from isoframe.engine.weights.unit_timeline import UnitTiming, exposed_wait
from isoframe.engine.weights.virtual_clock import roofline_paces, simulate


def run(
    blocks: list[BlockWork], *, ring: int, copy: float, num_residents: int = 0, num_passes: int = 2
) -> list[UnitTiming]:
    num_units = sum(len(block.units) for block in blocks)
    schedule = RingSchedule(num_units, ring=ring, residents=spread_evenly(num_units, num_residents))
    return simulate(schedule, blocks, copy_seconds=[copy] * num_units, num_passes=num_passes)


def blocks(num_dual: int, num_single: int, compute: float) -> list[BlockWork]:
    """Blocks of ``compute`` seconds a unit, of which a fifth is before and after a dual-stream block holds both units."""
    return block_paces(
        num_dual,
        num_single,
        projections=(0.2 * compute, 0.02 * compute),
        attention=compute,
        rests=(0.7 * compute, 0.08 * compute),
        single=compute,
    )


@pytest.mark.parametrize("ring", [2, 3, 4])
@pytest.mark.parametrize("compute", [1.0, 1.5])
def test_nothing_waits_after_the_first_unit_when_compute_is_as_slow_as_the_copy(
    ring: int, compute: float
) -> None:
    timings = run(blocks(0, 10, compute), ring=ring, copy=1.0)
    assert timings[0].compute_start == 1.0
    assert exposed_wait(timings[1:]) == 0
    assert timings[-1].compute_end == 1.0 + 20 * compute


def test_copies_set_the_pace_when_they_are_slower() -> None:
    timings = run(blocks(0, 10, 1.0), ring=3, copy=2.0)
    assert timings[-1].compute_end == 20 * 2.0 + 1.0


def test_evenly_spread_residents_take_their_share_of_the_copies() -> None:
    timings = run(blocks(0, 12, 1.0), ring=3, copy=2.0, num_residents=6, num_passes=3)
    second_pass_on = timings[12:]
    assert exposed_wait(second_pass_on) == 0


@pytest.mark.parametrize("compute", [1.0, 1.2])
@pytest.mark.parametrize("num_residents", [0, 20, 37])
def test_the_published_model_waits_for_nothing_after_its_first_block_in_a_ring_of_four(
    num_residents: int, compute: float
) -> None:
    timings = run(blocks(20, 40, compute), ring=4, copy=1.0, num_residents=num_residents, num_passes=3)
    first_pass, rest = sorted(timings[:80], key=lambda timing: timing.wanted), timings[80:]
    # The two units of the first block, and residents, which are copied once beside the others.
    late = [timing.unit for timing in first_pass if timing.compute_start > timing.wanted + 1e-9]
    assert late[0] == 0
    assert num_residents or late == [0, 1]
    assert exposed_wait(rest) == pytest.approx(0, abs=1e-9)


def shape(precision: str = "int8") -> DenoiseShape:
    sampling = SamplingConfig(num_sections=4)
    job = PlannedJob(shapes=published_shapes(), sampling=sampling, size=(640, 608), precision=precision)
    return job.denoise_shape(Machine(vram=2**33, ram=2**34, card=find_card("RTX 4090")))


@pytest.mark.parametrize("ring", [2, 3, 4])
@pytest.mark.parametrize("num_residents", [0, 20, 40, 60])
@pytest.mark.parametrize("h2d", [25.0, 6.0, 3.0])
@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_the_planner_predicts_the_step_of_the_virtual_clock(
    precision: str, h2d: float, num_residents: int, ring: int
) -> None:
    of, card = shape(precision), replace(find_card("RTX 4090"), h2d=h2d, bandwidth=1e9)
    unit = max(of.weights.units)
    kept = set(spread_evenly(80, num_residents))
    num_pairs = sum({2 * block, 2 * block + 1}.isdisjoint(kept) for block in range(20))
    predicted = step_time(
        of, card, copied_bytes=(80 - num_residents) * unit, tier="pinned", ring=ring, num_pairs=num_pairs
    )
    copy = unit / copy_rate(card, "pinned")
    timings = run(
        roofline_paces(of, predicted), ring=ring, copy=copy, num_residents=num_residents, num_passes=4
    )
    ends = [max(timing.compute_end for timing in timings[80 * k : 80 * k + 80]) for k in range(4)]
    measured = (ends[3] - ends[1]) / 2
    # Between the two regimes, where a dual-stream block computes about as long as its units are copied, the ring banks
    # a little of one block for the next.
    is_hidden = 2 * copy <= predicted.compute / 60
    assert measured == pytest.approx(predicted.total, rel=0.02 if is_hidden else 0.08)


def test_the_blocks_of_the_clock_compute_as_long_as_the_step() -> None:
    of = shape()
    step = step_time(of, find_card("RTX 4090"), copied_bytes=0, tier="pinned")
    seconds = sum(
        sum(block.projections) + block.attention + sum(block.rests) for block in roofline_paces(of, step)
    )
    assert seconds == pytest.approx(step.compute)


def test_a_ring_of_three_exposes_what_the_ends_of_a_block_do_not_hide() -> None:
    of, card = shape(), find_card("RTX 4090")
    assert exposed_seconds(of, card, 1.0, 4) == 0
    hidden = 1.0 - exposed_seconds(of, card, 1.0, 3)
    assert 0 < hidden < 0.05
    assert exposed_seconds(of, card, 0.99 * hidden, 3) == 0
    assert exposed_seconds(of, card, 1.0, 2) == pytest.approx(1.0 + 1.0 - hidden)
