"""The machine and the software that a number was measured with."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from ...engine.planning.nvml import read_card

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Hardware and versions.

    Attributes:
        cpu: model name.
        num_cores: logical cores that this process may use.
        num_threads: threads of a torch operator.
        ram_bytes: installed memory.
        gpu: name of CUDA device 0, None without one.
        gpu_bytes: its memory.
        driver: NVIDIA driver, at worst the CUDA version that it supports or "unknown"; None without a GPU.
        os: operating system and kernel.
        python: version; so are torch, triton and diffusers, None where not installed.
        isoframe: version of the installed distribution, None when run from a checkout.
        commit: of the checkout, with "-dirty" if files differ from it; outside a checkout $ISOFRAME_COMMIT, else None.
        load: programs that wanted a core in the last minute, this one included; None where the system cannot tell.
    """

    cpu: str
    num_cores: int
    num_threads: int
    ram_bytes: int
    gpu: str | None
    gpu_bytes: int | None
    driver: str | None
    os: str
    python: str
    torch: str
    triton: str | None
    diffusers: str | None
    isoframe: str | None
    commit: str | None
    load: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The environment of a stored row; what a later version added to it is left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def read_environment() -> Environment:
    """The environment of this process; starts CUDA if there is a device."""
    import psutil
    import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return Environment(
        cpu=_cpu_name(),
        num_cores=_num_cores(),
        num_threads=torch.get_num_threads(),
        ram_bytes=psutil.virtual_memory().total,
        gpu=gpu.name if gpu else None,
        gpu_bytes=gpu.total_memory if gpu else None,
        driver=_driver_version() if gpu else None,
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=torch.__version__,
        triton=installed_version("triton") or installed_version("triton-windows"),
        diffusers=installed_version("diffusers"),
        isoframe=installed_version("isoframe"),
        commit=_commit(),
        load=read_load(),
    )


def read_load() -> float | None:
    """Programs that wanted a core in the last minute; None where the system cannot tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _num_cores() -> int:
    # macOS and Windows have no affinity to ask for.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _driver_version() -> str:
    """Version of the first CUDA device's driver, by what the machine has of nvidia-smi, NVML and torch."""
    import torch

    lines = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if lines:
        return lines.splitlines()[0].strip()
    card = read_card(torch.device("cuda", 0))
    if card is not None and card.driver:
        return card.driver
    # Only builds for CUDA have it.
    version: int = getattr(torch._C, "_cuda_getDriverVersion", int)()
    return f"CUDA {version // 1000}.{version % 1000 // 10}" if version else "unknown"


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution; None where it is not."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    if not (_ROOT / ".git").exists():
        return os.environ.get("ISOFRAME_COMMIT") or None
    return _output("git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _output(program: str, *arguments: str) -> str | None:
    """Standard output of a program; None if there is no such program or it fails."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        result = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
