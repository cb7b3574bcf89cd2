"""Copies and waits are those of the streamer, section by section; a job that streams is seen, and one that does not."""

from pathlib import Path

import pytest
import torch

from isoframe.bench.budgets.ram_cases import RamCase, build_store
from isoframe.bench.meters.section_streams import SectionStreams
from isoframe.engine.events import PhaseEvent
from isoframe.engine.weights import memory as model_memory
from isoframe.engine.weights.device_copies import CopySpan
from isoframe.engine.weights.unit_streamer import Streamer

CPU = torch.device("cpu")


class Moment:
    """A point in time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def synchronize(self) -> None: ...

    def seconds_since(self, origin: "Moment") -> float:
        return self.seconds - origin.seconds


def test_waits_belong_to_the_section_in_which_compute_waited() -> None:
    streams = SectionStreams()
    for section, wait in enumerate((0.5, 0.25)):
        streams.on_event(PhaseEvent(phase="pack"))
        for unit in range(2):
            start = 10.0 * section + unit
            streams.acquired(unit, 0, Moment(start), Moment(start + wait))
            streams.released(unit, Moment(start + 0.9))
    assert streams.waits == pytest.approx([1.0, 0.5])
    assert streams.copied_bytes == [0, 0]


def test_what_is_copied_before_the_first_section_counts_for_none() -> None:
    streams = SectionStreams()
    streams.copied(0, CopySpan())
    assert streams.copied_bytes == []


def test_units_that_stream_from_disk_are_counted_byte_by_byte(tmp_path: Path) -> None:
    case = RamCase(name="tiny", num_heads=1, num_dual_blocks=1, num_single_blocks=3, ram_bytes=0)
    store = build_store(case, tmp_path / "store")
    streams = SectionStreams()
    with streams.watching():
        units = model_memory.open_units(store, CPU, tier="disk", ring=2)  # type: ignore[attr-defined]  # as the engine calls it
    assert isinstance(units, Streamer)
    for _ in range(2):
        streams.on_event(PhaseEvent(phase="pack"))
        for index in range(len(store.layouts)):
            units.acquire(index)
            units.release(index)
    units.close()
    sizes = [layout.num_bytes for layout in store.layouts]
    # The first section also asks for two units of the second, whose own last ones ask for a third.
    assert streams.copied_bytes == [sum(sizes) + sum(sizes[:2]), sum(sizes)]
    assert all(seconds >= 0 for seconds in streams.waits)
    assert len(streams.waits) == 2


def test_outside_the_block_units_are_opened_as_ever() -> None:
    before = model_memory.open_units  # type: ignore[attr-defined]  # as the engine calls it
    with SectionStreams().watching():
        assert model_memory.open_units is not before  # type: ignore[attr-defined]  # as the engine calls it
    assert model_memory.open_units is before  # type: ignore[attr-defined]  # as the engine calls it
