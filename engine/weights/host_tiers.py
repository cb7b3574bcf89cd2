"""Where the units lie outside the device's memory: in RAM (page-locked for CUDA), mapped files, or read from disk."""

import contextlib
import logging
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.tensor_files import read_fully
from ..errors import DeviceError
from .store import NUM_CHECKERS, StoredBlob

_logger = logging.getLogger(__name__)

Tier = Literal["pinned", "staged", "disk"]
# Units are packed into slabs of about this size, each locked with one call: torch's own page-locked allocations are
# rounded up to powers of two.
_SLAB_BYTES = 2**30
# Locked for every device of the process, as torch locks memory.
_PORTABLE = 1


class HostWeights(Protocol):
    """The units' blobs on the host."""

    def read(self, unit: int, out: Tensor) -> None:
        """Write blob ``unit`` to the start of ``out``, uint8 on the CPU.

        Only page-locked weights also go to CUDA; that copy is enqueued in the current stream.

        Raises:
            CheckpointError: its file ends early or is damaged.
        """
        ...

    def close(self) -> None:
        """Give up memory and files."""
        ...


def open_weights(blobs: Sequence[StoredBlob], tier: Tier, device: torch.device) -> HostWeights:
    """The blobs in ``tier``; where memory cannot be locked, tier "pinned" becomes "staged" with one warning."""
    if tier == "pinned":
        try:
            return PinnedWeights.read_all(blobs, is_locked=device.type == "cuda")
        except PinError as error:
            _logger.warning(
                "the weights cannot be locked in memory (%s): they are read through a small locked buffer, which can "
                "be slower",
                error,
            )
    return DiskWeights(blobs) if tier == "disk" else MappedWeights(blobs)


class PinError(DeviceError):
    """The system does not lock this much memory."""


class PinnedWeights:
    """All blobs in RAM. For CUDA their pages are locked, so that copies run beside compute.

    Attributes:
        blobs: uint8, in order.
    """

    def __init__(self, blobs: Sequence[Tensor], slabs: Sequence["HostBuffer"] = ()) -> None:
        self.blobs = list(blobs)
        self._slabs = list(slabs)

    @classmethod
    def read_all(cls, blobs: Sequence[StoredBlob], *, is_locked: bool) -> "PinnedWeights":
        """Read every blob straight into its place.

        Raises:
            PinError: the memory cannot be locked; nothing is kept.
            CheckpointError: a file ends early or is damaged; nothing is kept.
        """
        weights, disk = cls([]), DiskWeights(blobs)
        try:
            with ThreadPoolExecutor(NUM_CHECKERS, "isoframe-checks") as pool:
                checks = [
                    pool.submit(blobs[unit].check, content)
                    for group in _slab_groups(blobs)
                    for unit, content in weights._read_slab(group, blobs, disk, is_locked)
                ]
            for check in checks:
                check.result()
        except BaseException:
            weights.close()
            raise
        finally:
            disk.close()
        return weights

    def _read_slab(
        self, group: range, blobs: Sequence[StoredBlob], disk: "DiskWeights", is_locked: bool
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield each unit when it is in its place; it is not checked yet."""
        sizes = [blobs[unit].entry.num_bytes for unit in group]
        slab = HostBuffer(sum(sizes), is_locked=is_locked)
        self._slabs.append(slab)
        for unit, blob in zip(group, slab.tensor.split(sizes), strict=True):
            disk.load(unit, blob)
            disk.forget(unit)
            self.blobs.append(blob)
            yield unit, blob

    def read(self, unit: int, out: Tensor) -> None:
        blob = self.blobs[unit]
        if out.is_cuda:
            out[: blob.numel()].copy_(blob, non_blocking=True)
        else:
            np.copyto(out[: blob.numel()].numpy(), blob.numpy())

    def close(self) -> None:
        self.blobs = []
        for slab in self._slabs:
            slab.close()
        self._slabs = []


def _slab_groups(blobs: Sequence[StoredBlob]) -> list[range]:
    """Consecutive blobs of about one slab each."""
    groups: list[range] = []
    start = size = 0
    for unit, blob in enumerate(blobs):
        if size and size + blob.entry.num_bytes > _SLAB_BYTES:
            groups.append(range(start, unit))
            start, size = unit, 0
        size += blob.entry.num_bytes
    return [*groups, range(start, len(blobs))]


class MappedWeights:
    """Blobs of mapped files: RAM holds what fits, as the system's file cache."""

    def __init__(self, blobs: Sequence[StoredBlob]) -> None:
        self._units = list(blobs)
        self._maps = {path: _map(path) for path in {blob.entry.path for blob in blobs}}

    def read(self, unit: int, out: Tensor) -> None:
        entry = self._units[unit].entry
        content = out[: entry.num_bytes]
        # Copied by numpy, in one thread and without Python's lock: a page that is not in RAM blocks this thread alone.
        np.copyto(content.numpy(), self._maps[entry.path][entry.start : entry.start + entry.num_bytes])
        self._units[unit].check(content)

    def close(self) -> None:
        self._maps = {}


def _map(path: Path) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


class DiskWeights:
    """Blobs that are read from their files each time; use it from one thread at a time."""

    def __init__(self, blobs: Sequence[StoredBlob]) -> None:
        self._units = list(blobs)
        self._files: dict[Path, FileIO] = {}
        for path in sorted({blob.entry.path for blob in blobs}):
            self._files[path] = FileIO(path)

    def read(self, unit: int, out: Tensor) -> None:
        self.load(unit, out)
        self._units[unit].check(out[: self._units[unit].entry.num_bytes])

    def load(self, unit: int, out: Tensor) -> None:
        """:meth:`read` without the check."""
        entry = self._units[unit].entry
        file = self._files[entry.path]
        file.seek(entry.start)
        read_fully(
            file,
            out[: entry.num_bytes],
            f"{entry.path} ends inside {self._units[unit].name}; convert the model again",
        )

    def forget(self, unit: int) -> None:
        """Let the system's file cache drop a blob that has a copy in RAM."""
        entry = self._units[unit].entry
        if hasattr(os, "posix_fadvise"):
            file = self._files[entry.path].fileno()
            os.posix_fadvise(file, entry.start, entry.num_bytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}


class HostBuffer:
    """Whole pages of RAM of its own, given back to the system on :meth:`close`.

    Attributes:
        tensor: uint8; invalid after :meth:`close`.
    """

    def __init__(self, num_bytes: int, *, is_locked: bool) -> None:
        """Allocate.

        Raises:
            PinError: the pages cannot be locked.
        """
        self.tensor = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)
        address = self.tensor.data_ptr()
        self._unlock: Callable[[], object] = lambda: None
        if is_locked:
            _lock(address, num_bytes)
            self._unlock = weakref.finalize(self, _unlock, address)

    def close(self) -> None:
        self._unlock()
        self.tensor = torch.empty(0, dtype=torch.uint8)


def _lock(address: int, num_bytes: int) -> None:
    error = torch.cuda.cudart().cudaHostRegister(address, num_bytes, _PORTABLE)
    if int(error) != 0:
        _discard_last_error()
        raise PinError(
            f"{num_bytes / 2**20:.0f} MiB of RAM cannot be locked for copies to the device (cudaHostRegister: error "
            f"{int(error)}); close other programs or allow less (--ram)"
        )


def _discard_last_error() -> None:
    """CUDA remembers a failed call, and torch would raise it at the next kernel that it launches."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()


def _unlock(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)
