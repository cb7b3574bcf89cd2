"""Streamed units are the resident ones, bit for bit, whatever the timing; and broken orders are noticed."""

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from disturbed_copies import (
    BlobWeights,
    FreeIsEarly,
    FreeIsNotAwaited,
    LateCaller,
    LateStream,
    PoisonedCopies,
    PoisonedStagedCopies,
    ReadyIsNotAwaited,
    gate,
    numbered_blobs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_steps import blobs_of, layouts_of, one_step, prepared_steps
from tiny_models import tiny_model
from torch import Tensor

from isoframe.engine.checkpoints.destinations import DenseTensor
from isoframe.engine.companions.components import find_components
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.families.framepack.transformer_config import TransformerConfig
from isoframe.engine.families.framepack.unit_layout import block_units
from isoframe.engine.families.opening import open_transformer
from isoframe.engine.planning.ring import RingSchedule
from isoframe.engine.weights.device_copies import StagedCopies, StreamCopies
from isoframe.engine.weights.host_tiers import HostBuffer
from isoframe.engine.weights.unit_streamer import SlotPipeline, Streamer
from isoframe.engine.weights.unit_timeline import EventLog, chrome_trace, exposed_wait
from isoframe.engine.weights.work_streams import CallerStream, ThreadStream
from isoframe.quant import make_format

CPU = torch.device("cpu")
NUM_UNITS = 12


@cache
def model(name: str) -> tuple[TransformerConfig, dict[str, Tensor]]:
    if name == "demo":
        checkpoint = open_transformer(find_components("demo").transformer)
        return checkpoint.config, dict(checkpoint.tensors())
    # 12 units: 3 dual-stream blocks, 6 single-stream blocks.
    tiny = tiny_model(num_layers=3, num_single_layers=6, num_refiner_layers=1)
    return TransformerConfig.from_dict(tiny.config, source="test"), tiny.state_dict()


@cache
def resident(name: str, precision: str) -> tuple[PackedTransformer, list[Tensor], Tensor]:
    """An all-resident transformer, its units' blobs, and the velocities of two steps."""
    config, state = model(name)
    weight_format = make_format(precision, torch.float32)
    transformer = PackedTransformer(config, weight_format.dtype, CPU, weight_format=weight_format)
    for tensor_name, destination in transformer.destinations.items():
        destination.write(state[tensor_name])
    blobs = blobs_of(layouts_of(config, weight_format), state)
    return transformer, blobs, one_step(transformer, num_passes=2)


def streamed(name: str, precision: str, copies: StreamCopies, **options: object) -> Tensor:
    """The same velocities from units that come through ``copies``."""
    config, state = model(name)
    weight_format = make_format(precision, torch.float32)
    streamer = Streamer(layouts_of(config, weight_format), copies, **options)  # type: ignore[arg-type]
    transformer = PackedTransformer(
        config, weight_format.dtype, CPU, weight_format=weight_format, units=streamer
    )
    for tensor_name, destination in transformer.destinations.items():
        assert isinstance(destination, DenseTensor), "no unit is in memory twice"
        destination.write(state[tensor_name])
    try:
        return one_step(transformer, num_passes=2)
    finally:
        streamer.close()


def host_copies(blobs: list[Tensor], copy: ThreadStream | None = None) -> PoisonedCopies:
    return PoisonedCopies(CallerStream(), copy or ThreadStream("test-copies"), BlobWeights(blobs), CPU)


@pytest.mark.parametrize("residents", [(), (0, 3, 7), (1, 2, 3, 4, 9, 10, 11), tuple(range(NUM_UNITS))])
@pytest.mark.parametrize("ring", [2, 3, 4])
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("demo", "fp32"),
        ("demo", "bf16"),
        ("demo", "int8"),
        ("twelve", "fp32"),
        ("twelve", "bf16"),
        ("twelve", "int8"),
    ],
)
def test_streamed_output_is_the_resident_output(
    name: str, precision: str, ring: int, residents: tuple[int, ...]
) -> None:
    _, blobs, expected = resident(name, precision)
    residents = tuple(unit for unit in residents if unit < len(blobs))
    velocity = streamed(name, precision, host_copies(blobs), ring=ring, residents=residents)
    assert expected.isfinite().all()
    assert torch.equal(velocity, expected)


@cache
def narrow() -> tuple[PackedTransformer, list[Tensor], Callable[[], Tensor], Tensor]:
    """12 units of 64 channels, their blobs, two steps, and the velocities with all units resident."""
    tiny = tiny_model(num_attention_heads=1, num_layers=3, num_single_layers=6, num_refiner_layers=1)
    config, state = TransformerConfig.from_dict(tiny.config, source="test"), tiny.state_dict()
    transformer = PackedTransformer(config, torch.float32, CPU)
    for name, destination in transformer.destinations.items():
        destination.write(state[name])
    steps = prepared_steps(transformer, num_passes=2, grid=(2, 2))
    blobs = blobs_of(layouts_of(config, make_format("fp32", torch.float32)), state)
    return transformer, blobs, steps, steps()


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32), ring=st.integers(2, 4), residents=st.sets(st.integers(0, NUM_UNITS - 1)))
def test_neither_delays_nor_poison_change_the_output(seed: int, ring: int, residents: set[int]) -> None:
    """Copies and compute linger at random; a slot is NaN from the moment it is freed."""
    transformer, blobs, steps, expected = narrow()
    chance = random.Random(seed)
    late = LateStream("test-copies", random.Random(seed + 1))
    copies = PoisonedCopies(LateCaller(chance), late, BlobWeights(blobs), CPU)
    streamer = Streamer(
        layouts_of(transformer.config, transformer.weight_format), copies, ring=ring, residents=residents
    )
    try:
        assert expected.isfinite().all()
        assert torch.equal(steps(transformer.context(streamer)), expected)
    finally:
        streamer.close()


def uses_seen(
    copies: StreamCopies,
    schedule: RingSchedule,
    groups: list[tuple[int, ...]],
    log: EventLog | None = None,
) -> list[tuple[int, int]]:
    """(unit, byte) of every slot that two passes saw when they ran on the compute stream; then everything is closed."""
    slots, seen = copies.allocate([64] * schedule.num_slots), []
    pipeline = SlotPipeline(schedule, copies, log)

    def look(unit: int, slot: int) -> None:
        values = slots[slot].unique().tolist()
        seen.append((unit, values[0] if len(values) == 1 else -1))

    for group in groups * 2:
        for unit in group:
            slot = pipeline.acquire(unit)
            copies.compute.run(partial(look, unit, slot))
        for unit in group:
            pipeline.release(unit)
    copies.compute.record().synchronize()
    copies.close()
    copies.compute.close()
    return seen


def is_right(seen: list[tuple[int, int]]) -> bool:
    return all(unit == byte for unit, byte in seen)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32),
    ring=st.integers(2, 4),
    num_dual=st.integers(0, 3),
    num_single=st.integers(1, 6),
    resident_part=st.floats(0, 1),
    is_staged=st.booleans(),
)
def test_every_use_sees_its_own_unit_while_both_streams_run_late(
    seed: int, ring: int, num_dual: int, num_single: int, resident_part: float, is_staged: bool
) -> None:
    chance, groups = random.Random(seed), block_units(num_dual, num_single)
    num_units = 2 * num_dual + num_single
    residents = [unit for unit in range(num_units) if chance.random() < resident_part]
    weights = BlobWeights(numbered_blobs(num_units))
    streams = LateStream("test-compute", chance), LateStream("test-copies", chance)
    copies: StreamCopies = PoisonedCopies(*streams, weights, CPU)
    if is_staged:
        buffers = [HostBuffer(64, is_locked=False) for _ in range(2)]
        copies = PoisonedStagedCopies(*streams, LateStream("test-reader", chance), weights, CPU, buffers)
    schedule = RingSchedule(num_units, ring=ring, residents=residents)
    seen = uses_seen(copies, schedule, groups)
    assert len(seen) == 2 * num_units
    assert is_right(seen)


@pytest.mark.parametrize("engine", [FreeIsNotAwaited, FreeIsEarly])
def test_a_copy_that_does_not_wait_for_its_slot_is_noticed(engine: type[PoisonedCopies]) -> None:
    compute, copy = ThreadStream("test-compute"), ThreadStream("test-copies")
    copies = engine(compute, copy, BlobWeights(numbered_blobs(6)), CPU)
    slots, schedule, seen = copies.allocate([64] * 3), RingSchedule(6, ring=3), []
    pipeline = SlotPipeline(schedule, copies)
    first = pipeline.acquire(0)
    copy.record().synchronize()
    if engine is FreeIsEarly:
        compute.record().synchronize()
    open_gate = gate(compute)
    compute.run(lambda: seen.append(slots[first].unique().tolist()))
    pipeline.release(0)
    copy.record().synchronize()
    open_gate()
    compute.record().synchronize()
    copies.close()
    compute.close()
    assert seen == [[3]], "unit 3 was copied over unit 0 while compute still used it"


def test_compute_that_does_not_wait_for_the_copy_is_noticed() -> None:
    compute, copy = ThreadStream("test-compute"), ThreadStream("test-copies")
    open_gate = gate(copy)
    copies = ReadyIsNotAwaited(compute, copy, BlobWeights(numbered_blobs(6)), CPU)
    slots, seen = copies.allocate([64] * 3), []
    slot = SlotPipeline(RingSchedule(6, ring=3), copies).acquire(0)
    compute.run(lambda: seen.append(slots[slot].unique().tolist()))
    compute.record().synchronize()
    open_gate()
    copies.close()
    compute.close()
    assert seen == [[255]], "compute saw poison"


def test_the_transformer_turns_poison_into_nan() -> None:
    _, blobs, _ = resident("twelve", "fp32")
    copies = ReadyIsNotAwaited(CallerStream(), ThreadStream("test-copies"), BlobWeights(blobs), CPU)
    open_gate = gate(copies._copy)
    try:
        assert not streamed_without_close("twelve", copies).isfinite().any()
    finally:
        open_gate()
        copies.close()


def streamed_without_close(name: str, copies: StreamCopies) -> Tensor:
    transformer, _, _ = resident(name, "fp32")
    streamer = Streamer(layouts_of(transformer.config, make_format("fp32", torch.float32)), copies, ring=3)
    return one_step(transformer, transformer.context(streamer))


def test_skipped_steps_copy_nothing_and_the_next_one_finds_its_first_units() -> None:
    config, _ = model("twelve")
    _, blobs, _ = resident("twelve", "fp32")
    copies = host_copies(blobs)
    weights = copies._weights
    assert isinstance(weights, BlobWeights)
    streamer = Streamer(layouts_of(config, make_format("fp32", torch.float32)), copies, ring=3)
    for _ in range(2):
        for unit in range(NUM_UNITS):
            streamer.acquire(unit)
            streamer.release(unit)
    copies._copy.record().synchronize()
    assert weights.num_reads == 2 * NUM_UNITS + 3
    streamer.acquire(0)
    assert weights.num_reads == 2 * NUM_UNITS + 3
    streamer.close()


def test_a_step_that_was_left_does_not_spoil_the_next() -> None:
    transformer, blobs, expected = resident("twelve", "fp32")
    streamer = Streamer(
        layouts_of(transformer.config, make_format("fp32", torch.float32)), host_copies(blobs), ring=2
    )
    try:
        streamer.acquire(0)
        streamer.acquire(1)
        assert torch.equal(one_step(transformer, transformer.context(streamer), num_passes=2), expected)
    finally:
        streamer.close()


def test_suspended_memory_comes_back_with_the_next_unit() -> None:
    transformer, blobs, expected = resident("twelve", "fp32")
    streamer = Streamer(
        layouts_of(transformer.config, make_format("fp32", torch.float32)),
        host_copies(blobs),
        ring=3,
        residents=(0, 5),
    )
    context = transformer.context(streamer)
    try:
        one_step(transformer, context)
        streamer.suspend()
        assert streamer._copies._slots == []  # type: ignore[attr-defined]
        assert torch.equal(one_step(transformer, context, num_passes=2), expected)
    finally:
        streamer.close()


class _FailingWeights(BlobWeights):
    def read(self, unit: int, out: Tensor) -> None:
        if unit == 4:
            raise OSError(5, "the disk is gone")
        super().read(unit, out)


@pytest.mark.parametrize("is_staged", [False, True])
def test_a_failed_copy_is_raised_by_acquire(is_staged: bool) -> None:
    weights = _FailingWeights(numbered_blobs(6))
    streams = CallerStream(), ThreadStream("test-copies")
    copies: StreamCopies = StreamCopies(*streams, weights, CPU)
    if is_staged:
        buffers = [HostBuffer(64, is_locked=False)]
        copies = StagedCopies(*streams, ThreadStream("test-reader"), weights, CPU, buffers)
    schedule = RingSchedule(6, ring=2)
    copies.allocate([64] * schedule.num_slots)
    pipeline = SlotPipeline(schedule, copies)
    with pytest.raises(OSError, match="the disk is gone"):
        _pass(pipeline, 6)
    copies.close()


@pytest.mark.parametrize("is_staged", [False, True])
def test_a_copy_that_failed_before_anyone_waited_for_it_closes_what_is_suspended(is_staged: bool) -> None:
    transformer, blobs, _ = resident("twelve", "fp32")
    layouts = layouts_of(transformer.config, make_format("fp32", torch.float32))
    weights = _FailingWeights(blobs)
    streams = CallerStream(), ThreadStream("test-copies")
    copies: StreamCopies = StreamCopies(*streams, weights, CPU)
    if is_staged:
        buffer = HostBuffer(max(blob.numel() for blob in blobs), is_locked=False)
        copies = StagedCopies(*streams, ThreadStream("test-reader"), weights, CPU, [buffer])
    streamer = Streamer(layouts, copies, ring=5)
    # Unit 4 is copied ahead, and the job ends before its turn.
    streamer.acquire(0)
    streamer.suspend()
    assert streamer.has_failed
    assert copies._slots == []
    assert weights.blobs == []
    streamer.close()


def _pass(pipeline: SlotPipeline, num_units: int) -> None:
    for unit in range(num_units):
        pipeline.acquire(unit)
        pipeline.release(unit)


def test_closing_stops_the_threads_in_the_middle_of_a_pass() -> None:
    before = set(threading.enumerate())
    streams = CallerStream(), ThreadStream("test-copies")
    buffers = [HostBuffer(64, is_locked=False)]
    weights = BlobWeights(numbered_blobs(6))
    copies = StagedCopies(*streams, ThreadStream("test-reader"), weights, CPU, buffers)
    copies.allocate([64] * 3)
    SlotPipeline(RingSchedule(6, ring=3), copies).acquire(0)
    copies.close()
    assert set(threading.enumerate()) == before
    assert weights.blobs == []
    assert copies._slots == []


def test_an_event_of_a_closed_stream_is_reached() -> None:
    stream = ThreadStream("test-closed")
    stream.close()
    stream.run(lambda: pytest.fail("a closed stream runs nothing"))
    stream.record().synchronize()


def test_a_stream_nobody_closed_ends_with_its_last_user() -> None:
    stream = ThreadStream("test-forgotten")
    stream.record().synchronize()
    thread = stream._thread
    del stream
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_the_log_orders_copy_before_use_and_frees_before_the_next_copy() -> None:
    log, groups = EventLog(), block_units(2, 3)
    chance = random.Random(1)
    streams = LateStream("test-compute", chance), LateStream("test-copies", chance)
    copies = StreamCopies(*streams, BlobWeights(numbered_blobs(7)), CPU)
    assert is_right(uses_seen(copies, RingSchedule(7, ring=3, residents=[2]), groups, log))
    timings = log.timings()
    assert sorted(timing.unit for timing in timings) == sorted([*range(7)] * 2)
    free: dict[int, float] = {}
    for timing in timings:
        if timing.copy_start is not None and timing.copy_end is not None:
            assert free.get(timing.slot, 0.0) <= timing.copy_start <= timing.copy_end <= timing.compute_start
        assert timing.wanted <= timing.compute_start <= timing.compute_end
        free[timing.slot] = timing.compute_end
    assert sum(timing.copy_start is None for timing in timings) == 1, "the resident's second use"
    assert exposed_wait(timings) > 0


def test_the_trace_opens_in_a_browser() -> None:
    log = EventLog()
    copies = StreamCopies(CallerStream(), ThreadStream("test-copies"), BlobWeights(numbered_blobs(3)), CPU)
    uses_seen(copies, RingSchedule(3, ring=2), [(0,), (1,), (2,)], log=log)
    events = json.loads(chrome_trace(log.timings()))["traceEvents"]
    assert {event["ph"] for event in events} == {"X"}
    assert sum(event["tid"] == "copy" for event in events) == 6
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in events)


EXIT_WHILE_WORKING = """
import hashlib, threading
from isoframe.engine.weights.work_streams import ThreadStream
started = threading.Event()
def work():
    started.set()
    hashlib.sha256(bytes(2**27))
    print("finished")
stream = ThreadStream("test-exit")
stream.run(work)
started.wait()
"""


def test_the_interpreter_waits_at_its_end_for_work_that_has_begun() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3] / ".src")}
    command = [sys.executable, "-P", "-c", EXIT_WHILE_WORKING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stderr
