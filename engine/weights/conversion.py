"""Converting a checkpoint into a unit store: one unit in memory at a time, resumable, whole or not there."""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ...quant import WeightFormat
from ..checkpoints.checkpoint import Checkpoint, check_finite, check_shapes
from ..checkpoints.destinations import Destination, EncodedWeight
from ..checkpoints.tensor_files import FLOAT_DTYPES
from ..errors import CheckpointError, InputError
from ..families.framepack.transformer import PackedTransformer
from ..files import exclusive_lock
from ..model.units import UnitLayout, unit_specs
from .host import HostBuffer
from .store import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Store,
    is_store,
    manifest_digest,
    open_store,
    partial_folder,
    store_name,
)

_logger = logging.getLogger(__name__)

_JOURNAL_NAME = "progress.jsonl"
_PAGE = 4096
# Some file systems end at 4 GiB.
_MAX_FILE_BYTES = 2**32 - 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionProgress:
    """How far a conversion is.

    Attributes:
        phase: "convert", then "verify".
        done_bytes: bytes of the store that are written, or read back.
        total_bytes: bytes of the store.
    """

    phase: str
    done_bytes: int
    total_bytes: int


OnProgress = Callable[[ConversionProgress], None]


def convert(
    checkpoint: Checkpoint,
    weight_format: WeightFormat,
    folder: str | os.PathLike[str],
    on_progress: OnProgress | None = None,
) -> Store:
    """Write ``checkpoint`` as a store to ``folder`` and open it; a store of the same content is opened as it is.

    Until everything is written and read back, it is in ``<folder>.partial``. A conversion that was stopped, however,
    goes on there. In memory are one unit, one tensor of the checkpoint, and blocks of rows.

    Raises:
        CheckpointError: the checkpoint does not fit its config, or a weight does not fit the format.
        InputError: ``folder`` is taken, or the disk is full.
    """
    folder = Path(folder)
    if folder.exists():
        return _existing(folder, checkpoint, weight_format)
    return _Conversion(checkpoint, weight_format, folder, on_progress or (lambda _: None)).run()


def cached_store(
    checkpoint: Checkpoint,
    weight_format: WeightFormat,
    cache_dir: Path,
    on_progress: OnProgress | None = None,
) -> Store:
    """The store of ``checkpoint`` in the cache; converted, and logged, on first use."""
    folder = cache_dir / "stores" / store_name(checkpoint.source_hash, weight_format)
    if not folder.exists():
        _logger.info("converting %s to %s once, in %s", checkpoint.name, weight_format.name, folder)
    return convert(checkpoint, weight_format, folder, on_progress)


def _existing(folder: Path, checkpoint: Checkpoint, weight_format: WeightFormat) -> Store:
    if not is_store(folder):
        raise InputError(f"{folder} exists and is not a unit store; choose another folder")
    store = open_store(folder)
    names = [
        store_name(source.source_hash, kind)
        for source, kind in ((store, store.weight_format), (checkpoint, weight_format))
    ]
    if names[0] != names[1]:
        raise InputError(
            f"{folder} is a store of another model or precision ({store.name}, {store.weight_format.name}); choose "
            "another folder or delete it"
        )
    return store


@dataclass(frozen=True, slots=True)
class _Piece:
    """One tensor to write: a unit or another weight."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _OutputFile:
    """A safetensors file whose header is known before its tensors are."""

    name: str
    pieces: tuple[_Piece, ...]

    def header(self) -> bytes:
        """Length and JSON, filled up with spaces to whole pages."""
        offset, tensors = 0, {}
        for piece in self.pieces:
            end = offset + piece.num_bytes
            tensors[piece.name] = {
                "dtype": piece.dtype,
                "shape": list(piece.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        raw = json.dumps(tensors, separators=(",", ":")).encode()
        raw += b" " * (-(8 + len(raw)) % _PAGE)
        return len(raw).to_bytes(8, "little") + raw

    @property
    def num_bytes(self) -> int:
        return len(self.header()) + sum(piece.num_bytes for piece in self.pieces)

    def starts(self) -> dict[str, int]:
        """First byte of every tensor."""
        starts, start = {}, len(self.header())
        for piece in self.pieces:
            starts[piece.name] = start
            start += piece.num_bytes
        return starts


@dataclass(slots=True)
class _Record:
    """What the journal keeps of a finished tensor; errors are sums of squares by checkpoint name."""

    name: str
    sha256: str
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)


class _Conversion:
    """One run of :func:`convert`."""

    def __init__(
        self, checkpoint: Checkpoint, weight_format: WeightFormat, folder: Path, on_progress: OnProgress
    ) -> None:
        self._checkpoint = checkpoint
        self._format = weight_format
        self._folder = folder
        self._on_progress = on_progress
        self._partial = partial_folder(folder)
        self._layouts = {spec.name: UnitLayout(spec, weight_format) for spec in unit_specs(checkpoint.config)}

    def run(self) -> Store:
        _check_fits_config(self._checkpoint)
        self._check_space()
        with self._disk_errors(0):
            self._partial.mkdir(parents=True, exist_ok=True)
        lock = self._partial / "lock"
        with exclusive_lock(lock, f"another process converts to {self._folder}; wait for it"):
            manifest = self._manifest(self._write_pieces())
            with self._disk_errors(self._total_bytes):
                _write_json(self._partial / MANIFEST_NAME, manifest)
            open_store(self._partial).verify(lambda done, total: self._report("verify", done, total))
            (self._partial / _JOURNAL_NAME).unlink()
        lock.unlink()
        os.rename(self._partial, self._folder)
        return open_store(self._folder)

    @cached_property
    def _files(self) -> list[_OutputFile]:
        units = [
            _Piece(name, "U8", (layout.num_bytes,), layout.num_bytes)
            for name, layout in self._layouts.items()
        ]
        return _files("units", units) + _files("parameters", self._parameters())

    def _parameters(self) -> list[_Piece]:
        """What stays as it is, in the order of the checkpoint's files."""
        in_units = {
            f"{source}.{kind}"
            for layout in self._layouts.values()
            for layer in layout.spec.layers
            for source in layer.sources
            for kind in ("weight", "bias")
        }
        pieces = []
        for name, entry in self._checkpoint.entries.items():
            dtype = entry.dtype if FLOAT_DTYPES[entry.dtype].itemsize > 1 else "BF16"
            size = math.prod(entry.shape) * FLOAT_DTYPES[dtype].itemsize
            if name not in in_units:
                pieces.append(_Piece(name, dtype, entry.shape, size))
        return pieces

    def _check_space(self) -> None:
        existing = next(parent for parent in self._partial.absolute().parents if parent.exists())
        free = shutil.disk_usage(existing).free
        # The files have holes where nothing is written yet.
        have = sum(getattr(path.stat(), "st_blocks", 0) * 512 for path in self._partial.glob("*.safetensors"))
        if self._total_bytes - have > free:
            raise InputError(
                f"the store needs {self._total_bytes / 2**30:.2f} GiB, {existing} has {free / 2**30:.2f} GiB free; "
                "free some space or choose another folder"
            )

    def _write_pieces(self) -> dict[str, _Record]:
        """Write what the journal does not have yet."""
        done = 0
        with self._disk_errors(done):
            journal = _Journal(self._partial / _JOURNAL_NAME, self._identity())
        for file in self._files:
            path, starts = self._partial / file.name, file.starts()
            with self._disk_errors(done):
                _create_sized(path, file)
            for piece in file.pieces:
                if piece.name not in journal.records:
                    record, content = self._make(piece)
                    with self._disk_errors(done):
                        _write_at(path, starts[piece.name], content)
                        journal.add(record)
                    # Two units would be in memory while the next one is made.
                    del content
                done += piece.num_bytes
                self._report("convert", done, self._total_bytes)
        return journal.records

    def _identity(self) -> str:
        """What a journal must agree with: source, format and place of every byte."""
        digest = hashlib.sha256(store_name(self._checkpoint.source_hash, self._format).encode())
        for file in self._files:
            digest.update(file.name.encode() + file.header())
        return digest.hexdigest()

    def _make(self, piece: _Piece) -> tuple[_Record, memoryview]:
        """Content of ``piece`` and its record."""
        errors: dict[str, tuple[float, float]] = {}
        if piece.name in self._layouts:
            # Pages of its own, zero at first, that go back to the system at once.
            content = HostBuffer(piece.num_bytes, is_locked=False).tensor
            for name, destination in self._layouts[piece.name].destinations(content).items():
                tensor = self._checkpoint.tensor(name)
                _write(name, destination, tensor)
                if isinstance(destination, EncodedWeight):
                    errors[name] = destination.errors(tensor)
                    _check_noise(name, errors[name][1])
                else:
                    check_finite(name, tensor)
        else:
            tensor = self._checkpoint.tensor(piece.name)
            check_finite(piece.name, tensor)
            content = tensor.reshape(-1).view(torch.uint8)
        data = _bytes_of(content)
        return _Record(piece.name, hashlib.sha256(data).hexdigest(), errors), data

    def _manifest(self, records: dict[str, _Record]) -> dict[str, object]:
        errors = {name: sums for record in records.values() for name, sums in record.errors.items()}
        rows = [
            {
                "name": piece.name,
                "file": file.name,
                "num_bytes": piece.num_bytes,
                "sha256": records[piece.name].sha256,
            }
            for file in self._files
            for piece in file.pieces
        ]
        manifest: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "name": self._checkpoint.name,
            "source_hash": self._checkpoint.source_hash,
            "precision": self._format.name,
            "dtype": str(self._format.dtype).removeprefix("torch."),
            "config": asdict(self._checkpoint.config),
            "files": [file.name for file in self._files],
            "units": [
                {**row, "tensors": self._layouts[str(row["name"])].describe()}
                for row in rows
                if row["name"] in self._layouts
            ],
            "parameters": [row for row in rows if row["name"] not in self._layouts],
            "sqnr": {name: _decibel(*sums) for name, sums in errors.items()},
        }
        # The digest is that of the values as they come back.
        manifest = json.loads(json.dumps(manifest))
        return {**manifest, "digest": manifest_digest(manifest)}

    @cached_property
    def _total_bytes(self) -> int:
        return sum(piece.num_bytes for file in self._files for piece in file.pieces)

    @contextlib.contextmanager
    def _disk_errors(self, done_bytes: int) -> Iterator[None]:
        """Say what is left, and where, when the disk takes no more."""
        try:
            yield
        except OSError as error:
            left = (self._total_bytes - done_bytes) / 2**30
            raise InputError(
                f"{self._partial} cannot be written: {error.strerror or error}; {left:.2f} GiB are missing. Free space "
                f"and run the same again: it goes on from there. Or delete {self._partial}"
            ) from error

    def _report(self, phase: str, done: int, total: int) -> None:
        self._on_progress(ConversionProgress(phase=phase, done_bytes=done, total_bytes=total))


class _Journal:
    """The tensors that are safely on disk; survives a kill at any point."""

    def __init__(self, path: Path, identity: str) -> None:
        """Read the journal at ``path``; one of another ``identity`` is begun anew."""
        self._path = path
        self.records: dict[str, _Record] = {}
        lines = _whole_lines(path)
        if not lines or lines[0] != {"identity": identity}:
            path.write_text(json.dumps({"identity": identity}) + "\n", encoding="utf-8")
            return
        for line in lines[1:]:
            self.records[str(line["name"])] = _Record(**line)  # type: ignore[arg-type]  # written by add
        # A line that a kill has cut short goes.
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def add(self, record: _Record) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records[record.name] = record


def _whole_lines(path: Path) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _files(kind: str, pieces: Sequence[_Piece]) -> list[_OutputFile]:
    groups: list[list[_Piece]] = [[]]
    size = 0
    for piece in pieces:
        if groups[-1] and size + piece.num_bytes > _MAX_FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.num_bytes
    return [
        _OutputFile(f"{kind}-{i + 1:05}-of-{len(groups):05}.safetensors", tuple(group))
        for i, group in enumerate(groups)
    ]


def _create_sized(path: Path, file: _OutputFile) -> None:
    """The file at its full size, with its header written; what it has stays."""
    path.touch()
    os.truncate(path, file.num_bytes)
    _write_at(path, 0, memoryview(file.header()))


def _write_at(path: Path, start: int, content: memoryview) -> None:
    """Write and wait until it is on the disk."""
    with path.open("r+b", buffering=0) as file:
        file.seek(start)
        while content:
            content = content[file.write(content) :]
        os.fsync(file.fileno())


def _write_json(path: Path, content: dict[str, object]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _bytes_of(content: Tensor) -> memoryview:
    return memoryview(content.numpy().data)


def _check_fits_config(checkpoint: Checkpoint) -> None:
    model = PackedTransformer(checkpoint.config, torch.float32, torch.device("meta"))
    check_shapes(checkpoint, {name: destination.shape for name, destination in model.destinations.items()})


def _write(name: str, destination: Destination, tensor: Tensor) -> None:
    try:
        destination.write(tensor)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error


def _check_noise(name: str, noise: float) -> None:
    if not math.isfinite(noise):
        raise CheckpointError(f"{name} has values that are not finite; copy or download the model again")


def _decibel(signal: float, noise: float) -> float | None:
    """Signal to noise; None for no noise."""
    return None if noise == 0 else 10 * math.log10(signal / noise)
