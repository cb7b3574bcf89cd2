"""Memory against time: what tensors, allocator, device and host hold, and the power that the card draws, phase by phase."""

import importlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, Self

import psutil
import torch

from ...engine.events import Event, PhaseEvent
from ...engine.weights.host_tiers import HostBuffer
from .method_watch import observe

Source = Literal["NVML", "mem_get_info", "planner", "none"]
# A step takes tenths of a second at least, and a reading some 50 us.
INTERVAL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineSample:
    """One moment; bytes. None is what this machine does not have or does not tell.

    Attributes:
        seconds: since the first sample.
        phase: of the job.
        rss: resident set of the process.
        pinned: page-locked host memory of this process.
        allocated: device memory of tensors.
        reserved: what torch's allocator holds.
        device_used: what the device has lent out: context and libraries included, and other programs.
        power: of the card, milliwatts.
    """

    seconds: float
    phase: str
    rss: int
    pinned: int
    allocated: int | None = None
    reserved: int | None = None
    device_used: int | None = None
    power: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``dataclasses.asdict`` made."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


class Reader(Protocol):
    """Reads memory; a test brings its own.

    Attributes:
        source: where ``device_used`` comes from.
    """

    source: Source

    def read(self) -> dict[str, int | None]:
        """The fields of a sample but its time and phase."""
        ...


class MemoryReader:
    """Reads this process and one device."""

    def __init__(self, device: torch.device, pinned: Callable[[], int]) -> None:
        """Use :func:`open_reader`."""
        self._device = device
        self._pinned = pinned
        self._process = psutil.Process()
        self._nvml = _open_nvml(device) if device.type == "cuda" else None
        self.source: Source = "none"
        if device.type == "cuda":
            self.source = "mem_get_info" if self._nvml is None else "NVML"

    def read(self) -> dict[str, int | None]:
        """Read what tensors, allocator, device and host hold now, and the power of the card."""
        host: dict[str, int | None] = {"rss": self._process.memory_info().rss, "pinned": self._pinned()}
        if self._device.type != "cuda":
            return host
        return {
            **host,
            "allocated": torch.cuda.memory_allocated(self._device),
            "reserved": torch.cuda.memory_reserved(self._device),
            **(self._ask_torch() if self._nvml is None else self._nvml()),
        }

    def _ask_torch(self) -> dict[str, int | None]:
        free, total = torch.cuda.mem_get_info(self._device)
        return {"device_used": total - free}


@contextmanager
def open_reader(device: torch.device) -> Iterator[MemoryReader]:
    """A reader that counts what is page-locked inside the block."""
    buffers: weakref.WeakSet[HostBuffer] = weakref.WeakSet()

    def note(args: tuple[Any, ...], _: object) -> None:
        buffers.add(args[0])

    def pinned() -> int:
        # A closed buffer has an empty tensor. On the CPU nothing is locked.
        ours = sum(buffer.tensor.nbytes for buffer in list(buffers)) if device.type == "cuda" else 0
        return ours + _torch_pinned(device)

    with observe(HostBuffer, "__init__", note):
        yield MemoryReader(device, pinned)


def _torch_pinned(device: torch.device) -> int:
    if device.type != "cuda" or not hasattr(torch.cuda, "host_memory_stats"):
        return 0
    return int(torch.cuda.host_memory_stats().get("allocated_bytes.current", 0))


def _open_nvml(device: torch.device) -> Callable[[], dict[str, int | None]] | None:
    """Asks the driver for used memory and power; None without nvidia-ml-py or an answer."""
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None

    def ask() -> dict[str, int | None]:
        try:
            power = int(pynvml.nvmlDeviceGetPowerUsage(handle))
        except pynvml.NVMLError:
            power = None
        return {"device_used": int(pynvml.nvmlDeviceGetMemoryInfo(handle).used), "power": power}

    try:
        # Stays open: opening it again for every sample takes longer than a sample may.
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        ask()
    except pynvml.NVMLError:
        return None
    return ask


class MemoryTimeline:
    """Samples at every event that begins a phase and, in a thread, between them; :meth:`on_event` goes to the job.

    Attributes:
        samples: in the order of time.
        source: where the device's curve comes from.
    """

    def __init__(self, reader: Reader, clock: Callable[[], float] = time.perf_counter) -> None:
        self.samples: list[TimelineSample] = []
        self.source = reader.source
        self._reader = reader
        self._clock = clock
        self._start = clock()
        self._phase = "start"
        self._lock = threading.Lock()

    def on_event(self, event: Event) -> None:
        """Take an event of the job."""
        if isinstance(event, PhaseEvent):
            self.sample()
            self._phase = event.phase
            self.sample()

    def sample(self) -> None:
        """Take one sample now."""
        with self._lock:
            values: dict[str, Any] = self._reader.read()
            self.samples.append(
                TimelineSample(seconds=self._clock() - self._start, phase=self._phase, **values)
            )

    @contextmanager
    def running(self, interval: float = INTERVAL) -> Iterator[Self]:
        """Sample every ``interval`` seconds inside the block."""
        end = threading.Event()

        def work() -> None:
            while not end.wait(interval):
                self.sample()

        thread = threading.Thread(target=work, name="isoframe-memory", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            end.set()
            thread.join()
            self.sample()


def thin_out(samples: list[TimelineSample], most: int = 600) -> list[TimelineSample]:
    """At most about ``most`` samples: of neighbours in one phase the one that holds most."""
    size = max(-(-len(samples) // most), 1)
    kept: list[TimelineSample] = []
    group: list[TimelineSample] = []
    for sample in samples:
        if group and (len(group) == size or sample.phase != group[0].phase):
            kept.append(max(group, key=_held))
            group = []
        group.append(sample)
    return [*kept, max(group, key=_held)] if group else kept


def _held(sample: TimelineSample) -> tuple[int, int]:
    return sample.device_used or 0, sample.rss
