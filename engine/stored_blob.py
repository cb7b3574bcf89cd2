"""One tensor of a store, and whether its bytes are those that were written."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError
from .tensor_files import TensorEntry, read_tensor

_HASHED_BYTES = 2**22
# Blobs that this process has found intact: file, its time of change, first byte, hash.
_intact: set[tuple[Path, int, int, str]] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlob:
    """One tensor of a store.

    Attributes:
        name: of the unit, or of the tensor in the checkpoint.
        entry: where it lies.
        sha256: of its bytes.
    """

    name: str
    entry: TensorEntry
    sha256: str

    def read(self) -> Tensor:
        """The tensor in memory of its own, checked.

        Raises:
            CheckpointError: it is damaged.
        """
        tensor = read_tensor(self.entry)
        self.check(tensor.reshape(-1).view(torch.uint8))
        return tensor

    def check(self, content: Tensor) -> None:
        """Compare ``content`` (uint8), which was read, with the hash; once in a process, since it takes as long as reading.

        Raises:
            CheckpointError: it is damaged.
        """
        key = (self.entry.path, self.entry.path.stat().st_mtime_ns, self.entry.start, self.sha256)
        if key in _intact:
            return
        if hashlib.sha256(content.numpy().data).hexdigest() != self.sha256:
            raise self._damaged()
        _intact.add(key)

    def verify(self) -> None:
        """Read the bytes from the disk, not from what the system remembers of writing them, and check them.

        Raises:
            CheckpointError: they are damaged.
        """
        digest = hashlib.sha256()
        for block in _read_blocks(self.entry):
            digest.update(block)
        if digest.hexdigest() != self.sha256:
            raise self._damaged()

    def _damaged(self) -> CheckpointError:
        return CheckpointError(
            f"{self.name} in {self.entry.path} is damaged: its bytes do not match their hash; delete "
            f"{self.entry.path.parent} and convert the model again"
        )


def _read_blocks(entry: TensorEntry) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_HASHED_BYTES))
    with entry.path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), entry.start, entry.num_bytes, os.POSIX_FADV_DONTNEED)
        file.seek(entry.start)
        left = entry.num_bytes
        while left and (count := file.readinto(buffer[: min(left, _HASHED_BYTES)])):
            yield buffer[:count]
            left -= count
