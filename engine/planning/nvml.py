"""What the NVIDIA driver tells of a card, by nvidia-ml-py where it is installed."""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")

# Bits of what slows a card down, as NVML numbers them.
_THROTTLES = {"power limit": 0x4, "temperature": 0x20 | 0x40, "power brake": 0x80}


@dataclass(frozen=True, slots=True, kw_only=True)
class CardState:
    """One card at one moment; None is what the driver does not tell of this card.

    Attributes:
        driver: version of the driver.
        cuda: newest CUDA version that the driver runs, such as 12080.
        used_bytes: memory in use by all programs.
        pcie_generation: of the link now; a card at rest slows its link down.
        max_pcie_generation: of the link at best, card and board considered.
        pcie_width: lanes now.
        max_pcie_width: lanes at best.
        power_limit: milliwatts.
        power: milliwatts now.
        clock: MHz of the multiprocessors now.
        max_clock: the same at best.
        throttles: what slows the card down now.
    """

    driver: str | None
    cuda: int | None
    used_bytes: int | None
    pcie_generation: int | None
    max_pcie_generation: int | None
    pcie_width: int | None
    max_pcie_width: int | None
    power_limit: int | None
    power: int | None
    clock: int | None
    max_clock: int | None
    throttles: tuple[str, ...]


def read_card(device: torch.device) -> CardState | None:
    """State of a CUDA device; None where nvidia-ml-py is missing or the driver does not answer."""
    return _ask_driver(device, _read)


def process_bytes(device: torch.device) -> int | None:
    """What this process takes on a CUDA device, context included; None where the driver does not tell.

    It does not inside most containers, where processes have other numbers.
    """

    def read(pynvml: Any, handle: Any) -> int | None:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        used = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
        return next(iter(used), None)

    return _ask_driver(device, read)


def _ask_driver(device: torch.device, question: Callable[[Any, Any], T]) -> T | None:
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        # NVML ignores CUDA_VISIBLE_DEVICES: a number would be another card.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return question(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _read(pynvml: Any, handle: Any) -> CardState:
    def ask(question: Callable[..., Any], *arguments: Any) -> Any:
        # Laptop cards and virtual ones leave some questions open.
        try:
            return question(*arguments)
        except pynvml.NVMLError:
            return None

    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    reasons = ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
    return CardState(
        driver=ask(pynvml.nvmlSystemGetDriverVersion),
        cuda=ask(pynvml.nvmlSystemGetCudaDriverVersion),
        used_bytes=None if memory is None else memory.used,
        pcie_generation=ask(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
        max_pcie_generation=ask(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        pcie_width=ask(pynvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        max_pcie_width=ask(pynvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
        power_limit=ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle),
        power=ask(pynvml.nvmlDeviceGetPowerUsage, handle),
        clock=ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        max_clock=ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
        throttles=tuple(name for name, bits in _THROTTLES.items() if reasons & bits),
    )
