"""Converting a checkpoint into a unit store: two units in memory at a time, resumable, whole or not there."""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...quant import WeightFormat
from ..checkpoints.checkpoint import Checkpoint, check_finite, check_shapes
from ..checkpoints.destinations import Destination, EncodedWeight
from ..checkpoints.tensor_files import FLOAT_DTYPES, open_tensor_file
from ..device import machine_errors
from ..errors import CheckpointError, InputError
from ..events import ConversionEvent, OnConversion
from ..families.registry import family_of
from ..files import exclusive_lock, parse_json, replace_when_whole, write_durably
from ..model.units import UnitLayout
from ..output_paths import check_folder
from .host_tiers import HostBuffer
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

# The key of a file's metadata under which its note stands.
_NOTE = "conversion"
# What a conversion leaves in its folder when it is stopped; the first version kept a journal.
_OWN_FILES = ("units-*", "parameters-*", ".*.tmp", "progress.jsonl")
_PAGE = 4096


def convert(
    checkpoint: Checkpoint,
    weight_format: WeightFormat,
    folder: str | os.PathLike[str],
    on_progress: OnConversion | None = None,
) -> Store:
    """Write ``checkpoint`` as a store to ``folder`` and open it; a store of the same content is opened as it is.

    Until everything is written and read back, it is in ``<folder>.partial``. A conversion that was stopped, however,
    goes on there. In memory are two units, one tensor of the checkpoint, and blocks of rows.

    Raises:
        CheckpointError: the checkpoint does not fit its config, or a weight does not fit the format.
        InputError: ``folder`` is taken, or the disk is full.
    """
    folder = Path(folder)
    check_folder("store", partial_folder(folder))
    if folder.exists():
        return _existing(folder, checkpoint, weight_format)
    with machine_errors("the conversion"):
        return _Conversion(checkpoint, weight_format, folder, on_progress or (lambda _: None)).run()


def cached_store(
    checkpoint: Checkpoint,
    weight_format: WeightFormat,
    cache_dir: Path,
    on_progress: OnConversion | None = None,
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
    asked = store_name(checkpoint.source_hash, weight_format)
    if store_name(store.source_hash, store.weight_format) != asked:
        raise InputError(
            f"{folder} is a store of another model or precision ({store.name}, {store.weight_format.name}); choose "
            "another folder or delete it"
        )
    return store


@dataclass(frozen=True, slots=True)
class _StoreFile:
    """One file of the store: a unit, or other weights that take at most half the memory of one, or a single large one.

    Attributes:
        file: its name.
        names: of the unit, or of the weights in the checkpoint.
        num_bytes: of the tensors.
    """

    file: str
    names: tuple[str, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    """What a finished file says about itself, in its metadata.

    Attributes:
        conversion: the one it belongs to, see :attr:`_Conversion._identity`.
        rows: its tensors, as the manifest names them.
        errors: sums of squares of each converted weight and of its noise, by checkpoint name.
    """

    conversion: str
    rows: list[dict[str, object]]
    errors: dict[str, tuple[float, float]]


class _Conversion:
    """One run of :func:`convert`."""

    def __init__(
        self, checkpoint: Checkpoint, weight_format: WeightFormat, folder: Path, on_progress: OnConversion
    ) -> None:
        self._checkpoint = checkpoint
        self._format = weight_format
        self._folder = folder
        self._on_progress = on_progress
        self._partial = partial_folder(folder)
        self._layouts = {
            spec.name: UnitLayout(spec, weight_format) for spec in family_of(checkpoint.config).unit_specs()
        }

    def run(self) -> Store:
        _check_fits_config(self._checkpoint)
        self._check_space()
        with self._disk_errors(0):
            self._partial.mkdir(parents=True, exist_ok=True)
        lock = self._partial / "lock"
        try:
            with exclusive_lock(lock, f"another process converts to {self._folder}; wait for it"):
                if self._folder.exists():
                    # Another process was through with it since this one looked.
                    shutil.rmtree(self._partial, ignore_errors=True)
                    return _existing(self._folder, self._checkpoint, self._format)
                manifest = self._manifest(self._write_parts())
                with self._disk_errors(self._total_bytes):
                    write_durably(
                        self._partial / MANIFEST_NAME,
                        json.dumps(manifest, indent=1).encode(),
                        is_private=False,
                    )
                open_store(self._partial).verify(self._on_progress)
                if os.name != "nt":
                    self._give_name(lock)
            if os.name == "nt":
                # Windows renames no folder in which a file is open.
                self._give_name(lock)
        except FileNotFoundError:
            # Its folder got its name before the lock was there.
            if not self._folder.exists():
                raise
        return _existing(self._folder, self._checkpoint, self._format)

    def _give_name(self, lock: Path) -> None:
        with self._disk_errors(self._total_bytes):
            lock.unlink(missing_ok=True)
            os.rename(self._partial, self._folder)

    @cached_property
    def _parts(self) -> list[_StoreFile]:
        units = [((name,), layout.num_bytes) for name, layout in self._layouts.items()]
        # Two files are in memory at a time, and what is freed of such sizes need not go back to the system at once.
        half = max(num_bytes for _, num_bytes in units) // 2
        return _named("units", units) + _named("parameters", self._parameter_groups(half))

    def _parameter_groups(self, max_bytes: int) -> list[tuple[tuple[str, ...], int]]:
        """Names and bytes of what stays as it is, in the order of the checkpoint's files."""
        in_units = {
            f"{source}.{kind}"
            for layout in self._layouts.values()
            for layer in layout.spec.layers
            for source in layer.sources
            for kind in ("weight", "bias")
        }
        groups: list[tuple[tuple[str, ...], int]] = [((), 0)]
        for name, entry in self._checkpoint.entries.items():
            if name not in in_units:
                # What is in fp8 is kept in bf16.
                num_bytes = math.prod(entry.shape) * max(FLOAT_DTYPES[entry.dtype].itemsize, 2)
                names, size = groups[-1]
                if names and size + num_bytes > max_bytes:
                    groups.append(((name,), num_bytes))
                else:
                    groups[-1] = ((*names, name), size + num_bytes)
        return groups

    def _check_space(self) -> None:
        existing = next(parent for parent in self._partial.absolute().parents if parent.exists())
        free = shutil.disk_usage(existing).free
        have = sum(path.stat().st_size for path in self._partial.glob("*.safetensors"))
        if self._total_bytes - have > free:
            raise InputError(
                f"the store needs {self._total_bytes / 2**30:.2f} GiB, {existing} has {free / 2**30:.2f} GiB free; "
                "free some space or choose another folder"
            )

    def _write_parts(self) -> dict[str, _Note]:
        """Write the files that are not there yet: one is made while the one before it is hashed and written."""
        with self._disk_errors(0):
            notes = self._read_notes()
        kept, done = set(notes), 0
        made = (None if part.file in kept else self._make(part) for part in self._parts)
        with ThreadPoolExecutor(1, "isoframe-conversion") as pool:
            ahead = pool.submit(next, made, None)
            for part in self._parts:
                content = ahead.result()
                ahead = pool.submit(next, made, None)
                if content is not None:
                    with self._disk_errors(done):
                        notes[part.file] = self._write(part, *content)
                done += part.num_bytes
                self._on_progress(
                    ConversionEvent(phase="convert", done_bytes=done, total_bytes=self._total_bytes)
                )
        return notes

    def _read_notes(self) -> dict[str, _Note]:
        """What the files of an earlier run say; those of another conversion, and unfinished ones, are removed."""
        notes = {}
        files = {part.file for part in self._parts}
        for path in (path for pattern in _OWN_FILES for path in self._partial.glob(pattern)):
            note = _read_note(path) if path.name in files else None
            if note is not None and note.conversion == self._identity:
                notes[path.name] = note
            else:
                path.unlink()
        return notes

    @cached_property
    def _identity(self) -> str:
        """What files of one conversion agree in: source, format and place of every byte."""
        places = [layout.describe() for layout in self._layouts.values()]
        content = (store_name(self._checkpoint.source_hash, self._format), self._parts, places)
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def _make(self, part: _StoreFile) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
        """Tensors of ``part`` and the errors of its weights."""
        errors: dict[str, tuple[float, float]] = {}
        if part.names[0] not in self._layouts:
            tensors = {name: self._checkpoint.tensor(name) for name in part.names}
            for name, tensor in tensors.items():
                check_finite(name, tensor)
            return tensors, errors
        (unit,) = part.names
        # Pages of its own, zero at first, that go back to the system at once.
        content = HostBuffer(part.num_bytes, is_locked=False).tensor
        for name, destination in self._layouts[unit].destinations(content).items():
            sums = _encode(name, self._checkpoint.tensor(name), destination)
            if sums is not None:
                errors[name] = sums
        return {unit: content}, errors

    def _write(
        self, part: _StoreFile, tensors: dict[str, Tensor], errors: dict[str, tuple[float, float]]
    ) -> _Note:
        note = _Note(
            conversion=self._identity,
            rows=[
                {"name": name, "file": part.file, "num_bytes": tensor.nbytes, "sha256": _digest(tensor)}
                for name, tensor in tensors.items()
            ],
            errors=errors,
        )
        with replace_when_whole(self._partial / part.file) as temporary:
            save_file(tensors, temporary, {_NOTE: _padded(json.dumps(asdict(note)), part)})
        return note

    def _manifest(self, notes: dict[str, _Note]) -> dict[str, object]:
        ordered = [notes[part.file] for part in self._parts]
        rows = [row for note in ordered for row in note.rows]
        layouts = self._layouts.values()
        manifest: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "name": self._checkpoint.name,
            "source_hash": self._checkpoint.source_hash,
            "precision": self._format.name,
            "dtype": str(self._format.dtype).removeprefix("torch."),
            "config": asdict(self._checkpoint.config),
            "files": [part.file for part in self._parts],
            "units": [
                {**row, "tensors": layout.describe()} for row, layout in zip(rows, layouts, strict=False)
            ],
            "parameters": rows[len(layouts) :],
            "sqnr": {name: _decibel(*sums) for note in ordered for name, sums in note.errors.items()},
        }
        # The digest is that of the values as they come back.
        manifest = json.loads(json.dumps(manifest))
        return {**manifest, "digest": manifest_digest(manifest)}

    @cached_property
    def _total_bytes(self) -> int:
        return sum(part.num_bytes for part in self._parts)

    @contextlib.contextmanager
    def _disk_errors(self, done_bytes: int) -> Iterator[None]:
        """Say what is left, and where, when the disk takes no more."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            left = (self._total_bytes - done_bytes) / 2**30
            reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2]
            raise InputError(
                f"{self._partial} cannot be written: {reason}; {left:.2f} GiB are missing. Free space "
                f"and run the same again: it goes on from there. Or delete {self._partial}"
            ) from error


def _named(kind: str, groups: Sequence[tuple[tuple[str, ...], int]]) -> list[_StoreFile]:
    return [
        _StoreFile(f"{kind}-{i + 1:05}-of-{len(groups):05}.safetensors", names, num_bytes)
        for i, (names, num_bytes) in enumerate(groups)
    ]


def _read_note(path: Path) -> _Note | None:
    """What the file at ``path`` says of itself; None where it is not whole, or was written by something else."""
    try:
        header = parse_json(open_tensor_file(path).header)
        return _Note(**parse_json(header["__metadata__"][_NOTE]))
    except (CheckpointError, ValueError, KeyError, TypeError):
        return None


def _padded(note: str, part: _StoreFile) -> str:
    """``note`` with spaces after it, so that the blob of a unit begins at a whole page."""
    header = {
        "__metadata__": {_NOTE: note},
        part.names[0]: {"dtype": "U8", "shape": [part.num_bytes], "data_offsets": [0, part.num_bytes]},
    }
    # Before it stand eight bytes, the header's length.
    return note + " " * (-(8 + len(json.dumps(header, separators=(",", ":")))) % _PAGE)


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _check_fits_config(checkpoint: Checkpoint) -> None:
    model = family_of(checkpoint.config).transformer_class()(
        checkpoint.config, torch.float32, torch.device("meta")
    )
    check_shapes(checkpoint, {name: destination.shape for name, destination in model.destinations.items()})


def _encode(name: str, tensor: Tensor, destination: Destination) -> tuple[float, float] | None:
    """Write ``tensor``; its sum of squares and that of its noise, None where it is kept as it is."""
    check_finite(name, tensor)
    try:
        destination.write(tensor)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error
    return destination.errors(tensor) if isinstance(destination, EncodedWeight) else None


def _decibel(signal: float, noise: float) -> float | None:
    """Signal to noise ratio in dB; None where there is no noise."""
    return None if noise == 0 else 10 * math.log10(signal / noise)
