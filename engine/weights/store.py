"""The unit store: a model converted to one weight format, in the order in which it is used.

A folder of safetensors files. ``units-*`` hold one blob (U8) each, at whole pages; ``parameters-*`` hold all other weights
under their checkpoint names, as they were. ``manifest.json`` says what is where, and the SHA-256 of every tensor. The first
version wrote several units into one file: the manifest says so, and nothing else differs.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...quant import PRECISIONS, WeightFormat, make_format
from ..checkpoints.tensor_files import TensorEntry, open_tensor_file, read_tensor
from ..errors import CheckpointError
from ..events import ConversionEvent, OnConversion
from ..families.opening import read_config
from ..families.registry import family_of
from ..files import read_json
from ..model.units import UnitLayout

# Threads that hash: one takes a gigabyte or two a second, less than a good disk gives.
NUM_CHECKERS = 4
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


FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """An opened store; no weight is read.

    Attributes:
        folder: where it lies.
        name: of the model it was made from.
        source_hash: of the model it was made from.
        config: sizes of the model.
        weight_format: of the units.
        layouts: of the units, in execution order.
        units: their blobs.
        parameters: all other weights by checkpoint name.
        sqnr: signal to quantization noise of each converted weight in dB, by checkpoint name; None where it is exact.
    """

    folder: Path
    name: str
    source_hash: str
    config: Any
    weight_format: WeightFormat
    layouts: tuple[UnitLayout, ...]
    units: tuple[StoredBlob, ...]
    parameters: Mapping[str, StoredBlob]
    sqnr: Mapping[str, float | None]

    @property
    def unit_bytes(self) -> list[int]:
        """Size of every unit's blob."""
        return [blob.entry.num_bytes for blob in self.units]

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(blob.entry.num_bytes for blob in (*self.units, *self.parameters.values()))

    def verify(self, on_progress: OnConversion | None = None) -> None:
        """Read everything and compare it with the hashes.

        Raises:
            CheckpointError: bytes have changed; the message names where.
        """
        done, blobs = 0, (*self.units, *self.parameters.values())
        with ThreadPoolExecutor(NUM_CHECKERS, "isoframe-checks") as pool:
            for blob, _ in zip(blobs, pool.map(StoredBlob.verify, blobs), strict=True):
                done += blob.entry.num_bytes
                if on_progress is not None:
                    on_progress(ConversionEvent(phase="verify", done_bytes=done, total_bytes=self.num_bytes))


def store_name(source_hash: str, weight_format: WeightFormat) -> str:
    """Folder name of a store in the cache; the dtype is named where it is neither the format's own nor bf16."""
    precision = weight_format.name
    dtype = str(weight_format.dtype).removeprefix("torch.")
    if precision not in ("fp32", "bf16", "fp16") and dtype != "bfloat16":
        precision = f"{precision}-{dtype}"
    return f"{source_hash}-{precision}-v{FORMAT_VERSION}"


def partial_folder(folder: Path) -> Path:
    """Where a store is built before it gets its name."""
    return folder.with_name(f"{folder.name}.partial")


def is_store(folder: Path) -> bool:
    """Whether ``folder`` says that it is a store; it may be damaged."""
    return (folder / MANIFEST_NAME).is_file()


def open_store(folder: str | os.PathLike[str]) -> Store:
    """Open a store and check versions, names and sizes; what is read from it later is checked then.

    Raises:
        CheckpointError: there is none, only a part of one, or a damaged one.
    """
    folder = Path(folder)
    _check_exists(folder)
    manifest = _read_manifest(folder / MANIFEST_NAME)
    try:
        return _build(folder, manifest)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{MANIFEST_NAME} lacks or misstates {error}") from error


def manifest_digest(manifest: Mapping[str, object]) -> str:
    """SHA-256 of a manifest without its own digest."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_exists(folder: Path) -> None:
    if is_store(folder):
        return
    if partial_folder(folder).is_dir():
        raise CheckpointError(
            f"{folder} was converted in part only ({partial_folder(folder)}); run the same `isoframe convert` again: "
            "it goes on where it stopped"
        )
    if folder.is_dir():
        raise CheckpointError(
            f"{folder} has no {MANIFEST_NAME}: it is not a unit store; give one, or convert a model"
        )
    raise CheckpointError(f"store {folder} does not exist; make it with `isoframe convert MODEL {folder}`")


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path.parent} has store format {version!r}, this version reads {FORMAT_VERSION}; convert the model again"
        )
    if manifest.get("digest") != manifest_digest(manifest):
        raise _damaged(path.parent, f"{MANIFEST_NAME} does not match its digest")
    return manifest


def _build(folder: Path, manifest: dict[str, Any]) -> Store:
    config = read_config(manifest["config"], source=str(folder / MANIFEST_NAME))
    weight_format = _weight_format(folder, manifest)
    entries = {name: open_tensor_file(folder / name).entries for name in manifest["files"]}
    layouts = tuple(UnitLayout(spec, weight_format) for spec in family_of(config).unit_specs())
    blobs = [_blob(folder, row, entries) for row in (*manifest["units"], *manifest["parameters"])]
    units = tuple(blobs[: len(manifest["units"])])
    described = [{"name": layout.spec.name, "tensors": layout.describe()} for layout in layouts]
    if described != [{"name": row["name"], "tensors": row["tensors"]} for row in manifest["units"]]:
        raise CheckpointError(
            f"the units of {folder} are laid out differently than this version reads them; convert the model again"
        )
    return Store(
        folder=folder,
        name=manifest["name"],
        source_hash=manifest["source_hash"],
        config=config,
        weight_format=weight_format,
        layouts=layouts,
        units=units,
        parameters={blob.name: blob for blob in blobs[len(units) :]},
        sqnr=manifest["sqnr"],
    )


def _weight_format(folder: Path, manifest: dict[str, Any]) -> WeightFormat:
    precision, dtype = manifest["precision"], getattr(torch, manifest["dtype"])
    if precision not in PRECISIONS:
        raise CheckpointError(
            f"{folder} is of precision {precision!r}, this version knows {', '.join(PRECISIONS)}; convert it again"
        )
    return make_format(precision, dtype)


def _blob(folder: Path, row: dict[str, Any], entries: dict[str, dict[str, TensorEntry]]) -> StoredBlob:
    entry = entries[row["file"]].get(row["name"])
    if entry is None or entry.num_bytes != row["num_bytes"]:
        raise _damaged(folder, f"{row['file']} does not hold {row['name']} as the manifest says")
    return StoredBlob(name=row["name"], entry=entry, sha256=row["sha256"])


def _damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"the store {folder} is damaged: {reason}; delete it and convert the model again")
