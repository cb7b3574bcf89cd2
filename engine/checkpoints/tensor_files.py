"""Safetensors files: a checked header, and tensors mapped one at a time."""

import hashlib
import itertools
import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import MAX_JSON_BYTES, parse_json

FLOAT_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
# Weights are floating point; a few files hold whole numbers, such as the alpha of a LoRA.
_DTYPES = FLOAT_DTYPES | {"I64": torch.int64, "I32": torch.int32}

# Every pickle since protocol 2, and the zip archive that torch.save writes.
_PICKLE_MAGIC = (b"\x80", b"PK\x03\x04")

_FULLY_HASHED_BYTES = 16 * 2**20
_NUM_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        path: the file.
        dtype: name in the file, such as "BF16" or "F8_E4M3".
        shape: sizes of the axes.
        start: first byte, counted from the start of the file.
        num_bytes: bytes of the tensor.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """One safetensors file whose size agrees with its header.

    Attributes:
        path: the file.
        size_bytes: size on disk.
        header: the JSON header as stored; it names every tensor, so it identifies the model's layout.
        entries: the tensors by stored name, in file order.
    """

    path: Path
    size_bytes: int
    header: bytes
    entries: dict[str, TensorEntry]

    def fingerprint(self) -> bytes:
        """SHA-256 of the content; of files over 16 MiB of the header and 64 blocks spread over the tensors.

        The header alone does not tell two checkpoints of one architecture apart, reading all of 26 GB takes minutes.
        """
        digest = hashlib.sha256(self.header)
        is_small = self.size_bytes <= _FULLY_HASHED_BYTES
        block_bytes = self.size_bytes if is_small else _SAMPLE_BYTES
        last = self.size_bytes - block_bytes
        with self.path.open("rb") as file:
            for i in range(1 if is_small else _NUM_SAMPLES):
                file.seek(last * i // (_NUM_SAMPLES - 1))
                digest.update(file.read(block_bytes))
        return digest.digest()


def open_tensor_file(path: Path) -> TensorFile:
    """Read and check the header of ``path``; no tensor is read.

    Raises:
        CheckpointError: the file is absent, truncated, pickled or not a safetensors file.
    """
    refuse_pickle(path)
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            header = _read_header(path, file.read(8), size_bytes, file.read)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    entries = _parse_header(path, header)
    _check_size(path, size_bytes, 8 + len(header), entries)
    return TensorFile(path=path, size_bytes=size_bytes, header=header, entries=entries)


def refuse_pickle(path: Path) -> None:
    """Raise :class:`CheckpointError` where ``path`` is a pickle or an archive with one, or cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    # A safetensors file begins with the eight bytes of its header's length, which may look like a pickle, and "{".
    if start.startswith(_PICKLE_MAGIC) and start[8:] != b"{":
        raise CheckpointError(
            f"{path} is pickled and could run code when it is loaded; convert it to safetensors"
        )


def map_tensor(entry: TensorEntry) -> Tensor:
    """The tensor as stored, backed by a private mapping of its bytes alone.

    The mapping goes with the tensor, so reading a whole file never holds more than the tensors in use: 33 MiB
    instead of the 640 MiB that stay resident with one mapping of a 640 MiB file of 32 MiB tensors.
    """
    dtype = _DTYPES[entry.dtype]
    if entry.num_bytes == 0:
        return torch.empty(entry.shape, dtype=dtype)
    skipped = entry.start % mmap.ALLOCATIONGRANULARITY
    with entry.path.open("rb") as file:
        mapping = mmap.mmap(
            file.fileno(),
            skipped + entry.num_bytes,
            # A copy-on-write mapping counts as writable; torch warns about buffers that are not.
            access=mmap.ACCESS_COPY,
            offset=entry.start - skipped,
        )
    numel = math.prod(entry.shape)
    return torch.frombuffer(mapping, dtype=dtype, count=numel, offset=skipped).view(entry.shape)


def read_tensor(entry: TensorEntry) -> Tensor:
    """The tensor as stored, in memory of its own."""
    raw = torch.empty(entry.num_bytes, dtype=torch.uint8)
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.start)
        read_fully(file, raw, f"{entry.path} ends early; copy or convert the model again")
    return raw.view(FLOAT_DTYPES[entry.dtype]).view(entry.shape)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a small file that Isoframe wrote, and its metadata.

    Raises:
        SafetensorError: it is damaged.
        OSError: it cannot be read.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        return tensors, file.metadata() or {}


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_fully(file: FileIO, out: Tensor, message: str) -> None:
    """Fill ``out`` (uint8) from ``file``; raise :class:`CheckpointError` with ``message`` where it ends."""
    rest = memoryview(out.numpy().data)
    while rest:
        count = file.readinto(rest)
        if not count:
            raise CheckpointError(message)
        rest = rest[count:]


def _read_header(path: Path, prefix: bytes, size_bytes: int, read: Callable[[int], bytes]) -> bytes:
    if prefix == b"version ":
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder"
        )
    num_header_bytes = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or MAX_JSON_BYTES >= num_header_bytes > size_bytes - 8:
        raise CheckpointError(_truncated(path, size_bytes, 8 + num_header_bytes))
    if num_header_bytes > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} has a corrupt header or is not a safetensors file; copy it again")
    return read(num_header_bytes)


def _parse_header(path: Path, header: bytes) -> dict[str, TensorEntry]:
    try:
        raw = parse_json(header)
        raw.pop("__metadata__", None)
        entries = [(name, _parse_entry(path, 8 + len(header), fields)) for name, fields in raw.items()]
        entries.sort(key=lambda item: (item[1].start, item[1].num_bytes))
        _check_disjoint(entries)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path} has a corrupt header ({error}); copy or download it again") from error
    return dict(entries)


def _parse_entry(path: Path, data_start: int, fields: dict[str, object]) -> TensorEntry:
    shape = tuple(int(size) for size in fields["shape"])  # type: ignore[attr-defined]  # checked by the caller
    begin, end = (int(offset) for offset in fields["data_offsets"])  # type: ignore[attr-defined]  # checked by the caller
    dtype = str(fields["dtype"])
    known = _DTYPES.get(dtype)
    if any(size < 0 for size in shape):
        raise ValueError(f"{list(shape)} is no shape")
    if not 0 <= begin <= end or (known is not None and end - begin != math.prod(shape) * known.itemsize):
        raise ValueError(f"{dtype} {list(shape)} does not fill bytes {begin} to {end}")
    return TensorEntry(path=path, dtype=dtype, shape=shape, start=data_start + begin, num_bytes=end - begin)


def _check_disjoint(entries: list[tuple[str, TensorEntry]]) -> None:
    """Two names for the same bytes are how a small file claims to be a large one."""
    for (name, entry), (next_name, next_entry) in itertools.pairwise(entries):
        if next_entry.start < entry.start + entry.num_bytes:
            raise ValueError(f"{name} and {next_name} overlap")


def _check_size(path: Path, size_bytes: int, data_start: int, entries: dict[str, TensorEntry]) -> None:
    expected = max((entry.start + entry.num_bytes for entry in entries.values()), default=data_start)
    if size_bytes < expected:
        raise CheckpointError(_truncated(path, size_bytes, expected))
    if size_bytes > expected:
        raise CheckpointError(
            f"{path} has {size_bytes} bytes, but its header describes {expected}; copy or download it again"
        )


def _truncated(path: Path, size_bytes: int, expected: int) -> str:
    return (
        f"{path} is truncated: it has {size_bytes} bytes and needs at least {expected}; "
        "copy or download it again"
    )
