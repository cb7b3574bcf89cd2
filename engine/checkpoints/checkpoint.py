"""The transformer's checkpoint: where its tensors lie, and copying them into a model."""

import difflib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, count_problems, first_names
from ..files import read_json
from .destinations import Destination
from .hub import commit_of, nearest_path
from .tensor_files import FLOAT_DTYPES, TensorEntry, TensorFile, map_tensor

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"

_SINGLE_FILE_PREFIX = "model.diffusion_model."
# Written by ComfyUI beside fp8 weights: the weight is multiplied by its scale. Activation scales only matter to
# arithmetic in fp8, which upcast weights do not use.
_WEIGHT_SCALES = (".scale_weight", ".weight_scale")
_ACTIVATION_SCALES = (".scale_input", ".input_scale")
_FP8_MARKER = "scaled_fp8"
_BLOCK_ROWS = 1024


# Of tensors by model name.
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A transformer's tensors on disk.

    Attributes:
        config: sizes of the model, as its family reads them.
        name: Hub id, folder name or file stem; tells an F1 checkpoint from an inverted one.
        source_hash: SHA-256 over the files' names, sizes and fingerprints; names the model in metadata.
        entries: the weights by model name.
        scales: the scalar that an fp8 weight of that name is multiplied by.
    """

    config: Any
    name: str
    source_hash: str
    entries: Mapping[str, TensorEntry] = field(repr=False)
    scales: Mapping[str, TensorEntry] = field(repr=False)

    @property
    def revision(self) -> str | None:
        """The commit of the Hub's repository that the weights came with; None for other files."""
        return next((commit_of(entry.path) for entry in self.entries.values()), None)

    @property
    def shapes(self) -> Shapes:
        """Shape of every weight by model name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (model name, tensor) in file order; fp8 comes as bf16, everything else as stored.

        Each tensor maps its own bytes: drop it before taking the next and one tensor is in memory at a time.
        """
        for name in self.entries:
            yield name, self.tensor(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor by its model name; see :meth:`tensors`."""
        tensor = map_tensor(self.entries[name])
        if tensor.dtype.itemsize > 1:
            return tensor
        if name not in self.scales:
            return tensor.to(torch.bfloat16)
        scale, scaled = map_tensor(self.scales[name]).float(), torch.empty_like(tensor, dtype=torch.bfloat16)
        # By blocks: the products of a whole weight in fp32 would take four times its memory.
        for part, out in zip(tensor.split(_BLOCK_ROWS), scaled.split(_BLOCK_ROWS), strict=True):
            out.copy_(part.float() * scale)
        return scaled


def load_into(checkpoint: Checkpoint, destinations: Mapping[str, Destination]) -> None:
    """Write every tensor of ``checkpoint`` to its destination, one in memory at a time.

    Args:
        checkpoint: the opened checkpoint.
        destinations: by model name; every tensor has exactly one.

    Raises:
        CheckpointError: names or shapes differ, and nothing has been copied then; or a value is not finite.
    """
    check_shapes(checkpoint, {name: destination.shape for name, destination in destinations.items()})
    with torch.no_grad():
        for name, tensor in checkpoint.tensors():
            check_finite(name, tensor)
            destinations[name].write(tensor)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise :class:`CheckpointError` if a value of the tensor called ``name`` is NaN or infinite."""
    # The extremes are NaN where a value is; a mask of all values takes ten times as long.
    if tensor.numel() and not bool(torch.stack(tensor.aminmax()).isfinite().all()):
        raise CheckpointError(f"{name} has values that are not finite; copy or download the model again")


def check_shapes(checkpoint: Checkpoint, expected: Shapes) -> None:
    """Raise :class:`CheckpointError` unless the checkpoint has exactly the ``expected`` names and shapes."""
    if found := count_problems(shape_problems(checkpoint.shapes, expected)):
        raise CheckpointError(f"the tensors of {checkpoint.name} do not fit its config: {found}")


def shape_problems(shapes: Shapes, expected: Shapes) -> dict[str, list[str]]:
    """What sets ``shapes`` apart from those that are ``expected``: tensors by kind of problem."""
    return {
        "missing": sorted(expected.keys() - shapes.keys()),
        "extra": sorted(shapes.keys() - expected.keys()),
        "misshapen": [
            f"{name} {list(shapes[name])} instead of {list(expected[name])}"
            for name in sorted(expected.keys() & shapes.keys())
            if shapes[name] != expected[name]
        ],
    }


def missing_source(argument: str, source: str, known: Sequence[str]) -> str:
    """Message for a ``source`` that is neither a local path nor a Hub id, with the nearest path or ``known`` name."""
    found = difflib.get_close_matches(source, known, n=1, cutoff=0.6)
    nearest = nearest_path(source) or (found[0] if found else None)
    hint = f"; did you mean {nearest!r}?" if nearest else ""
    return (
        f"{argument} must be demo, a folder, a .safetensors file or a Hub id 'owner/name', got {source!r}: as a "
        f"path it does not exist (looked for {os.path.abspath(os.path.expanduser(source))}), and as a Hub id it is "
        f"not of that form{hint}"
    )


def read_index(path: Path) -> dict[str, str]:
    """The map from tensor names to files in a ``*.safetensors.index.json``."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} must have a weight_map from tensor names to files")
    outside = [str(name) for name in weight_map.values() if Path(str(name)).name != name]
    if outside:
        raise CheckpointError(f"{path} must name files of its own folder, got {first_names(outside)}")
    return weight_map


def folder_name(folder: Path) -> str:
    """Name of a model folder: a Hub snapshot's repository id, else the folder's name less ``transformer/``."""
    folder = Path(os.path.abspath(folder))
    if folder.name == "transformer":
        folder = folder.parent
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name


def hash_files(files: Iterable[TensorFile]) -> str:
    """SHA-256 over the sorted (file name, size, fingerprint): which weights these are."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path.name):
        digest.update(f"{file.path.name}\0{file.size_bytes}\0".encode())
        digest.update(file.fingerprint())
    return digest.hexdigest()


class MissingShardError(CheckpointError):
    """A folder lacks files that its index names.

    Attributes:
        names: of the files.
    """

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = names


def check_shards(index: Path) -> dict[str, str]:
    """The map of :func:`read_index`, whose files are all there.

    Raises:
        MissingShardError: one is not.
    """
    weight_map = read_index(index)
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise MissingShardError(
            f"{index.parent} lacks {len(missing)} of the {len(shards)} shards that {index.name} names: "
            f"{first_names(missing)}; copy or download them again",
            missing,
        )
    return weight_map


def read_entries(
    files: list[TensorFile], weight_map: Mapping[str, str], source: str
) -> tuple[dict[str, TensorEntry], dict[str, TensorEntry]]:
    """The weights of a model by their names in it, and the scales of those in fp8.

    Args:
        files: of the model.
        weight_map: from a tensor's name in its file to the file, where two files have one of that name.
        source: names the model in errors.

    Raises:
        CheckpointError: a tensor is absent, of another dtype than weights have, or its scale is wrong.
    """
    entries = _collect(files, weight_map)
    if any(stored.startswith(_SINGLE_FILE_PREFIX) for stored in entries):
        entries = {stored.removeprefix(_SINGLE_FILE_PREFIX): entry for stored, entry in entries.items()}
    scales = _split_scales(entries, source)
    _check_dtypes(entries, source)
    return entries, scales


def _collect(files: list[TensorFile], weight_map: Mapping[str, str]) -> dict[str, TensorEntry]:
    """All tensors of the files; the index decides where two files have the same name."""
    entries = {
        name: entry
        for file in files
        for name, entry in file.entries.items()
        if weight_map.get(name, file.path.name) == file.path.name
    }
    absent = [f"{name} ({weight_map[name]})" for name in weight_map if name not in entries]
    if absent:
        raise CheckpointError(
            f"the index names {len(absent)} tensors that are absent from their shard: {first_names(absent)}; "
            "index and shards are of different versions: copy or download both again"
        )
    return entries


def _split_scales(entries: dict[str, TensorEntry], source: str) -> dict[str, TensorEntry]:
    """Take the fp8 scales and markers out of ``entries``; returns the scale of each scaled weight."""
    scales: dict[str, TensorEntry] = {}
    for name in list(entries):
        base, dot, suffix = name.rpartition(".")
        if dot + suffix in _ACTIVATION_SCALES:
            del entries[name]
        elif dot + suffix in _WEIGHT_SCALES:
            scales[f"{base}.weight"] = entries.pop(name)
    has_marker = entries.pop(_FP8_MARKER, None) is not None
    _check_scales(entries, scales, has_marker, source)
    return scales


def _check_scales(
    entries: Mapping[str, TensorEntry], scales: Mapping[str, TensorEntry], has_marker: bool, source: str
) -> None:
    fp8 = {name for name, entry in entries.items() if entry.dtype.startswith("F8")}
    lone = sorted(scales.keys() - fp8)
    if lone:
        raise CheckpointError(f"{source} has {len(lone)} scales without an fp8 weight: {first_names(lone)}")
    unscaled = sorted(fp8 - scales.keys())
    if unscaled and (has_marker or scales):
        raise CheckpointError(
            f"{source} is scaled fp8, but {len(unscaled)} weights lack a scale: {first_names(unscaled)}"
        )
    wide = [f"{name} {list(entry.shape)}" for name, entry in scales.items() if entry.shape not in ((), (1,))]
    if wide:
        raise CheckpointError(
            f"{source}: an fp8 scale must be one number per tensor, got {first_names(wide)}"
        )


def _check_dtypes(entries: Mapping[str, TensorEntry], source: str) -> None:
    others = [f"{name} {entry.dtype}" for name, entry in entries.items() if entry.dtype not in FLOAT_DTYPES]
    if others:
        raise CheckpointError(
            f"{source} has {len(others)} tensors that are not {', '.join(FLOAT_DTYPES)}: {first_names(others)}; "
            "give the bf16, fp16 or fp8_e4m3 version of the model"
        )
