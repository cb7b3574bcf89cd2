"""Curves of memory: every phase has samples, sources are told, and thinning keeps the peaks."""

import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from isoframe.bench.meters.memory_timeline import (
    INTERVAL,
    MemoryTimeline,
    Source,
    TimelineSample,
    open_reader,
    thin_out,
)
from isoframe.engine.events import PhaseEvent
from isoframe.engine.weights.host_tiers import HostBuffer

CUDA = torch.device("cuda", 0)


class FakeReader:
    """Memory that grows by a byte with every look."""

    source: Source = "NVML"

    def __init__(self) -> None:
        self.rss = 0
        self.has_been_read_often = threading.Event()

    def read(self) -> dict[str, int | None]:
        self.rss += 1
        if self.rss >= 5:
            self.has_been_read_often.set()
        return {"rss": self.rss, "pinned": 7, "device_used": 10 * self.rss, "power": None}


def test_a_phase_is_read_at_its_beginning_and_at_its_end() -> None:
    seconds = iter(range(100))
    timeline = MemoryTimeline(FakeReader(), clock=lambda: float(next(seconds)))
    for phase in ("denoise", "decode"):
        timeline.on_event(PhaseEvent(phase=phase))
    found = [(sample.phase, sample.seconds, sample.device_used) for sample in timeline.samples]
    assert found == [("start", 1, 10), ("denoise", 2, 20), ("denoise", 3, 30), ("decode", 4, 40)]
    assert (timeline.source, timeline.samples[0].pinned) == ("NVML", 7)


def test_a_thread_samples_between_the_events_and_ends_with_the_block() -> None:
    reader = FakeReader()
    timeline = MemoryTimeline(reader)
    with timeline.running(interval=1e-4):
        assert reader.has_been_read_often.wait(timeout=30)
    num_samples = len(timeline.samples)
    assert num_samples >= 6
    assert not any(thread.name == "isoframe-memory" for thread in threading.enumerate())


def make_sample(index: int, phase: str, rss: int) -> TimelineSample:
    return TimelineSample(seconds=float(index), phase=phase, rss=rss, pinned=0)


def test_thinning_keeps_the_peak_of_every_phase() -> None:
    samples = [make_sample(i, "denoise" if i < 70 else "decode", (i * 37) % 101) for i in range(100)]
    kept = thin_out(samples, most=10)
    assert len(kept) <= 11
    for phase in ("denoise", "decode"):
        whole = max(sample.rss for sample in samples if sample.phase == phase)
        assert max(sample.rss for sample in kept if sample.phase == phase) == whole
    assert thin_out(samples, most=100) == samples


class FakeNvml:
    """The driver's library: 3 GiB in use, 200 W."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, has_power: bool = True, is_silent: bool = False) -> None:
        self._has_power = has_power
        self._is_silent = is_silent

    def nvmlInit(self) -> None:  # noqa: N802  # the library's name
        if self._is_silent:
            raise self.NVMLError

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802  # the library's name
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802  # the library's name
        assert handle == "GPU-1234"
        return SimpleNamespace(used=3 * 2**30)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802  # the library's name
        if not self._has_power:
            raise self.NVMLError
        return 200_000


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with 2 GiB in tensors, 2.5 GiB in the allocator and 4 of 12 GiB lent out."""
    for name, value in {
        "get_device_properties": SimpleNamespace(uuid="1234"),
        "memory_allocated": 2 * 2**30,
        "memory_reserved": 5 * 2**29,
        "mem_get_info": (8 * 2**30, 12 * 2**30),
        "host_memory_stats": {"allocated_bytes.current": 100},
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("has_power", [True, False])
def test_the_driver_tells_the_devices_curve_and_power(
    monkeypatch: pytest.MonkeyPatch, has_power: bool
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(has_power=has_power))  # type: ignore[arg-type]  # a fake
    with open_reader(CUDA) as reader:
        assert reader.source == "NVML"
        found = reader.read()
    assert (found["allocated"], found["reserved"], found["device_used"]) == (2 * 2**30, 5 * 2**29, 3 * 2**30)
    assert found["power"] == (200_000 if has_power else None)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("library", [None, FakeNvml(is_silent=True)], ids=["missing", "silent"])
def test_without_the_driver_torch_tells_the_curve_and_the_source_says_so(
    monkeypatch: pytest.MonkeyPatch, library: FakeNvml | None
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)  # type: ignore[arg-type]  # a fake
    with open_reader(CUDA) as reader:
        assert reader.source == "mem_get_info"
        assert reader.read()["device_used"] == 4 * 2**30


@pytest.mark.usefixtures("cuda")
def test_page_locked_memory_is_that_of_torch_and_of_our_buffers_until_they_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with open_reader(CUDA) as reader:
        buffer = HostBuffer(8192, is_locked=False)
        assert reader.read()["pinned"] == 100 + 8192
        buffer.close()
        assert reader.read()["pinned"] == 100


def test_the_cpu_has_a_resident_set_and_no_device() -> None:
    with open_reader(torch.device("cpu")) as reader:
        found = reader.read()
    assert reader.source == "none"
    assert set(found) == {"rss", "pinned"}
    assert (found["rss"] or 0) > 2**20


def test_sampling_costs_less_than_a_hundredth_of_the_time_between_two_samples() -> None:
    with open_reader(torch.device("cpu")) as reader:
        timeline = MemoryTimeline(reader)
        start = time.process_time()
        for _ in range(200):
            timeline.sample()
        seconds = (time.process_time() - start) / 200
    assert seconds < 0.01 * INTERVAL
