"""The machine that a plan is made for, this one or one that is described, and the graphics cards that are known."""

import difflib
import json
import os
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..request.sizes import Size, format_size, parse_size

if TYPE_CHECKING:
    import torch


_DATA = Path(__file__).parents[1] / "data" / "cards.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a card can do at best; sources are in ``data/cards.json``.

    Attributes:
        name: as in the table, or the device's own with ``is_estimate``.
        capability: compute capability, 10 * major + minor.
        bf16: dense TFLOPS with fp32 accumulation; fp16 is the same.
        fp16_accumulate: dense fp16 TFLOPS with fp16 accumulation.
        int8: dense TOPS.
        fp8: dense TFLOPS with fp32 accumulation; None where the card has no fp8.
        bandwidth: of its memory, GB/s.
        h2d: copies from pinned host memory, GB/s.
        memory: GiB on the box.
        is_estimate: the card is not in the table; the figures are a neutral guess.
    """

    name: str
    capability: int
    bf16: float
    fp16_accumulate: float
    int8: float
    fp8: float | None
    bandwidth: float
    h2d: float
    memory: float
    is_estimate: bool = False

    @property
    def memory_bytes(self) -> int:
        return int(self.memory * 2**30)


@cache
def cards() -> dict[str, Card]:
    """All cards of the table by name."""
    return {name: Card(name=name, **figures) for name, figures in _table()["cards"].items()}


def find_card(name: str) -> Card:
    """The card that a user calls ``name``; case, spaces, brand and memory size do not matter.

    Raises:
        ConfigError: no such card in the table; the message names the nearest.
    """
    known = {_key(card): card for card in cards()}
    card = known.get(_key(name)) or known.get(_key(f"RTX {name}"))
    if card is not None:
        return cards()[card]
    nearest = difflib.get_close_matches(_key(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(known[key] for key in nearest)}?" if nearest else ""
    raise ConfigError(
        f"card must be one of {', '.join(cards())}, got {name!r}" + (f"; {hint}" if hint else "")
    )


def card_of_device(device_name: str) -> Card:
    """The card that CUDA calls ``device_name``, such as "NVIDIA GeForce RTX 3060 Laptop GPU"; else an estimate."""
    matches = [card for key, card in ((_key(c), c) for c in cards()) if key == _key(device_name)]
    return cards()[matches[0]] if matches else neutral_card(device_name)


def neutral_card(name: str) -> Card:
    """A cautious guess for a card that is not in the table, labelled as an estimate."""
    return replace(cards()[_table()["neutral"]], name=name, is_estimate=True)


def _key(name: str) -> str:
    """What is left of a name without brand, form and memory size."""
    name = re.sub(r"\d+\s*gi?b\b", "", name.lower())
    name = re.sub(r"nvidia|geforce|gpu|graphics|pcie|sxm\d*|hbm\d*e?|80gb", "", name)
    return re.sub(r"[^a-z0-9]", "", name)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(_DATA.read_text(encoding="utf-8"))
    return table


# What NVML counts for a process besides its tensors: about 300 MiB where kernels load lazily, more on large cards and
# with the kernels of cuBLAS, cuDNN and Triton that a job loads.
CONTEXT_BYTES = 512 * 2**20
# Shares of what is free that are used unless the user says otherwise.
_VRAM_SHARE, _RAM_SHARE = 0.9, 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a job may use.

    Attributes:
        vram: bytes on the device as NVML counts the process, context included; on the CPU the same as ``ram``.
        ram: bytes that the engine may add to the process in RAM.
        card: what times are predicted for.
        is_cpu: the device is the CPU.
    """

    vram: int
    ram: int
    card: Card
    is_cpu: bool = False

    @property
    def context(self) -> int:
        return 0 if self.is_cpu else CONTEXT_BYTES

    @property
    def companion_bytes(self) -> int:
        """Bytes of a value in the encoders and the VAE, which run in fp16 on CUDA and in fp32 on the CPU."""
        return 4 if self.is_cpu else 2


def this_machine(device: "torch.device", *, vram: Size | None = None, ram: Size | None = None) -> Machine:
    """The machine that runs this process.

    Args:
        device: where the transformer computes.
        vram: budget on a CUDA device for the whole process; None is 90 % of what is free. The CPU has none.
        ram: budget in RAM; None is 60 % of what is available.

    Raises:
        ConfigError: a size that is no size, or more than the machine has.
    """
    ram_bytes = _host_budget(ram)
    if device.type != "cuda":
        cpu = Machine(vram=ram_bytes, ram=ram_bytes, card=_cpu(), is_cpu=True)
        return with_budget(cpu, device, vram=vram)
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    # The allocator hands out again what it keeps; what tensors hold, such as another engine's weights, it does not.
    vram_bytes = int((free + torch.cuda.memory_reserved(device) - held) * _VRAM_SHARE)
    if vram is not None:
        vram_bytes = _device_budget(vram, device, held)
    return Machine(vram=vram_bytes, ram=ram_bytes, card=card_of_device(torch.cuda.get_device_name(device)))


def with_budget(
    machine: Machine,
    device: "torch.device",
    *,
    vram: Size | None = None,
    ram: Size | None = None,
    held: int = 0,
) -> Machine:
    """``machine``, which is this one, with other limits; None keeps one.

    Args:
        machine: the limits so far.
        device: where the transformer computes.
        vram: budget on a CUDA device for the whole process.
        ram: budget in RAM.
        held: bytes of it that others than the engine hold.

    Raises:
        ConfigError: a limit is more than the machine has, or less than a process needs on the device.
    """
    ram_bytes = machine.ram if ram is None else _host_budget(ram)
    if machine.is_cpu:
        if vram is not None:
            raise ConfigError(f"vram must be left out on device 'cpu', got {vram!r}; use ram")
        return replace(machine, vram=ram_bytes, ram=ram_bytes)
    vram_bytes = machine.vram if vram is None else _device_budget(vram, device, held)
    return replace(machine, vram=vram_bytes, ram=ram_bytes)


def described_machine(*, card: str | None, vram: Size | None, ram: Size | None) -> Machine:
    """A machine with the CUDA card called ``card``; a card of no name is a cautious guess.

    Args:
        card: as in the table of cards; None takes the one of this machine, if it has one.
        vram: budget on the card; None is 90 % of its memory, or of what is free on this machine's.
        ram: budget in RAM; None is 60 % of what is available on this machine.

    Raises:
        ConfigError: an unknown card, a bad size, or neither a card nor ``vram`` to go by.
    """
    if card is not None:
        found = find_card(card)
        size = int(found.memory_bytes * _VRAM_SHARE)
        if vram is not None:
            size = parse_size("vram", vram, available=found.memory_bytes, owner=found.name)
        return Machine(vram=size, ram=_host_budget(ram, is_here=False), card=found)
    import torch

    if torch.cuda.is_available():
        return this_machine(torch.device("cuda"), vram=vram, ram=ram)
    if vram is None:
        raise ConfigError(
            "vram or card must be given (--vram 6GiB, --card 'RTX 3060'): this machine has no CUDA device"
        )
    size = parse_size("vram", vram)
    return Machine(vram=size, ram=_host_budget(ram, is_here=False), card=neutral_card("an unnamed card"))


def _device_budget(vram: Size, device: "torch.device", held: int) -> int:
    """What is left of ``vram``, a budget for the process, beside ``held`` bytes of others in it."""
    import torch

    total = torch.cuda.mem_get_info(device)[1]
    left = parse_size("vram", vram, available=total, owner=str(device)) - held
    if left <= CONTEXT_BYTES:
        raise ConfigError(
            f"vram must be more than the {format_size(CONTEXT_BYTES + held)} that this process takes on {device} "
            f"already, got {vram!r}; close other engines or allow more"
        )
    return left


def _host_budget(ram: Size | None, *, is_here: bool = True) -> int:
    """Bytes of the budget in RAM; with ``is_here`` the plan is for this machine, and more than it has is an error."""
    import psutil

    memory = psutil.virtual_memory()
    if ram is None:
        return int(memory.available * _RAM_SHARE)
    return parse_size("ram", ram, available=int(memory.total) if is_here else None, owner="this machine")


def _cpu() -> Card:
    """A guess: 50 GFLOPS a core in fp32, twice that in 16 bit."""
    rate = 0.1 * (os.cpu_count() or 1)
    return Card(
        name="CPU", capability=0, bf16=rate, fp16_accumulate=rate, int8=rate, fp8=None, bandwidth=20.0,
        h2d=10.0, memory=0, is_estimate=True,
    )  # fmt: skip
