"""Launching Triton kernels with the settings of the device's compute capability."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

ARCHS = (80, 86, 89, 90, 120)
_TABLE = Path(__file__).parents[1] / "data" / "launch_settings.json"

Settings = Mapping[str, int]

# Values that a setting may have; those that are not listed are sizes of tiles.
_TILES = tuple(2**power for power in range(13))
_ALLOWED = {
    "num_warps": (1, 2, 4, 8, 16, 32),
    "num_stages": tuple(range(1, 9)),
    "HALF_SUMS": (0, 1),
    "ROUND_FIRST": (0, 1),
}


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch that was recorded instead of run.

    Attributes:
        kernel: the ``triton.jit`` function.
        grid: programs along each axis.
        args: positional arguments.
        meta: keyword arguments: constexpr parameters and launch options.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recording:
    """What launchers did inside a block that records.

    Attributes:
        arch: compute capability that they saw, 10 * major + minor.
        launches: in order.
        settings: what they asked for, by name.
    """

    arch: int
    launches: list[Launch] = field(default_factory=list)
    settings: dict[str, Settings] = field(default_factory=dict)


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)
_overrides: ContextVar[Mapping[str, Settings]] = ContextVar("overrides", default=MappingProxyType({}))


def _read_table(path: Path) -> dict[str, dict[str, dict[str, int]]]:
    table: dict[str, dict[str, dict[str, int]]] = json.loads(path.read_text(encoding="utf-8"))
    return table


_settings = _read_table(_TABLE)
# Of a kernel on one compute capability, and on no other.
_measured: dict[tuple[str, int], Settings] = {}


def use_settings(path: Path, arch: int) -> None:
    """Take launch settings from ``path`` for the compute capability ``arch`` (10 * major + minor); all or none of them.

    Raises:
        ValueError: an entry for ``arch`` is of no kernel, has other keys than the kernel's, or an impossible value.
    """
    table = _read_table(path)
    if not isinstance(table, dict) or not all(isinstance(archs, dict) for archs in table.values()):
        raise ValueError("it must map names of kernels to compute capabilities")
    found = {name: archs[str(arch)] for name, archs in table.items() if str(arch) in archs}
    for name, given in found.items():
        _check_settings(name, given)
    _measured.update({(name, arch): given for name, given in found.items()})


def _check_settings(name: str, given: object) -> None:
    if name not in _settings:
        raise ValueError(f"{name} is no kernel of this version")
    keys = set(next(iter(_settings[name].values())))
    if not isinstance(given, dict) or set(given) != keys:
        raise ValueError(f"{name} must have {', '.join(sorted(keys))}, got {given!r}")
    for key, value in given.items():
        allowed = _ALLOWED.get(key, _TILES)
        if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
            raise ValueError(f"{key} of {name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def settings(name: str, device: torch.device) -> Settings:
    """Tile sizes and launch options of kernel ``name`` on ``device``.

    Those that were measured on its compute capability, see :func:`use_settings`, else the shipped ones.
    """
    recording, overrides = _recording.get(), _overrides.get()
    if name in overrides:
        found = overrides[name]
    else:
        arch = recording.arch if recording is not None else _capability(device)
        found = _measured.get((name, arch)) or _shipped(name, arch)
    if recording is not None:
        recording.settings[name] = found
    return found


def _shipped(name: str, arch: int) -> Settings:
    """A compute capability that the table lacks takes the entry of the next lower one that it has."""
    table = _settings[name]
    known = sorted(int(key) for key in table)
    return table[str(max((key for key in known if key <= arch), default=known[0]))]


@contextlib.contextmanager
def override_settings(overrides: Mapping[str, Settings]) -> Iterator[None]:
    """Inside the block, settings of the names in ``overrides`` are these, on every device."""
    token = _overrides.set(overrides)
    try:
        yield
    finally:
        _overrides.reset(token)


def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return ARCHS[0]
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Run ``kernel[grid](*args, **meta)`` on the device of its first tensor.

    Raises:
        ValueError: the tensors are not on a CUDA device, and the interpreter is off.
    """
    recording = _recording.get()
    if recording is not None:
        recording.launches.append(Launch(kernel, grid, args, meta))
        return
    # Without Triton this line says what to install.
    run = kernel[grid]
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    if device.type == "cuda":
        with torch.cuda.device(device):
            run(*args, **meta)
    elif os.environ.get("TRITON_INTERPRET") == "1":
        run(*args, **meta)
    else:
        raise ValueError(f"tensors must be on a CUDA device for a Triton kernel, got {device}")


@contextlib.contextmanager
def record_launches(arch: int) -> Iterator[Recording]:
    """Collect the launches of the block instead of running them, with the settings of ``arch``.

    Args:
        arch: compute capability, 10 * major + minor.
    """
    recording = Recording(arch)
    token = _recording.set(recording)
    try:
        yield recording
    finally:
        _recording.reset(token)
