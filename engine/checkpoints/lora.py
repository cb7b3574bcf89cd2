"""LoRAs: low-rank changes ``W + strength * alpha / r * up down`` of a model's layers, and those that an engine has read."""

import difflib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError, count_problems, first_names
from .lora_files import FileLayer, LoraFile, open_lora_file
from .lora_names import LoraAliases, LoraNames, LoraTarget
from .tensor_files import TensorEntry, map_tensor

_MERGED_ROWS = 1024

# Layers by checkpoint name without ".weight": shape of the weight.
LayerShapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactors:
    """The change of one layer's weight: ``scale * up down``.

    Attributes:
        down: [r, in], the in axes of a convolution flattened.
        up: [out, r].
        scale: alpha / r.
    """

    down: Tensor
    up: Tensor
    scale: float

    def change(self, strength: float, rows: slice) -> Tensor:
        """The rows ``rows`` of [out, in], in fp32."""
        return (self.up[rows].float() * (self.scale * strength)) @ self.down.float()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lora:
    """A LoRA that fits one model.

    Attributes:
        name: as jobs call it.
        path: its file.
        content_hash: SHA-256 of the file's content, as in the metadata of videos.
        factors: by checkpoint name of the layer, without ``.weight``; on the CPU.
    """

    name: str
    path: Path
    content_hash: str
    factors: Mapping[str, LoraFactors] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Memory of the factors as stored."""
        return sum(factors.down.nbytes + factors.up.nbytes for factors in self.factors.values())


# LoRAs that are at work together, each with its strength.
ActiveLoras = Sequence[tuple[Lora, float]]


def read_lora(
    path: str | os.PathLike[str], shapes: LayerShapes, aliases: LoraAliases, *, name: str | None = None
) -> Lora:
    """Read a LoRA in the names of diffusers, PEFT, kohya, musubi, Tencent or ComfyUI.

    Args:
        path: a .safetensors file, or a folder with one.
        shapes: the model's layers.
        aliases: other names of them.
        name: of the LoRA; None takes the file's.

    Raises:
        CheckpointError: damaged, pickled, not finite, or not of this model; the message names the tensors.
    """
    file = open_lora_file(path)
    names = LoraNames(shapes, aliases)
    targets = {layer: names.find(layer) for layer in file.layers}
    _check_fits(file, targets, shapes)
    factors: dict[str, LoraFactors] = {}
    for layer, target in targets.items():
        assert target is not None, "checked"
        factors |= _read_layer(file, layer, target, shapes)
    lora = Lora(
        name=name or file.file.path.stem,
        path=file.file.path,
        content_hash=file.file.fingerprint().hex(),
        factors=factors,
    )
    _check_finite(lora)
    return lora


def merge(name: str, weight: Tensor, loras: ActiveLoras, dtype: torch.dtype | None = None) -> Tensor:
    """``weight`` with all ``loras`` worked into it, in fp32 and rounded once; as it is where none touches it.

    Args:
        name: checkpoint name of the tensor, such as "proj_out.weight".
        weight: of any shape and float dtype; not changed.
        loras: with their strengths.
        dtype: of the result; None for that of ``weight``.
    """
    layer, _, kind = name.rpartition(".")
    found = [(lora.factors[layer], strength) for lora, strength in loras if layer in lora.factors]
    if kind != "weight" or not found:
        return weight
    merged = torch.empty_like(weight, dtype=dtype or weight.dtype)
    # By blocks of rows: a whole weight and its change in fp32 would take four times its memory.
    for start in range(0, weight.shape[0], _MERGED_ROWS):
        rows = slice(start, start + _MERGED_ROWS)
        part = weight[rows].float()
        changes = [factors.change(strength, rows).to(part.device) for factors, strength in found]
        merged[rows] = sum(changes, part.flatten(1)).view(part.shape)
    return merged


def _check_fits(file: LoraFile, targets: Mapping[str, LoraTarget | None], shapes: LayerShapes) -> None:
    problems: dict[str, list[str]] = {"unknown": list(file.unknown)}
    owners: dict[str, str] = {}
    for layer, parts in file.layers.items():
        target = targets[layer]
        if target is None:
            problems["unknown"].append(layer)
            continue
        for kind, text in _problems(layer, parts, target, shapes):
            problems.setdefault(kind, []).append(text)
        for source in target.layers:
            if owners.setdefault(source, layer) != layer:
                problems.setdefault("given twice", []).append(f"{source} by {owners[source]} and {layer}")
    if found := count_problems(problems):
        raise CheckpointError(f"the LoRA {file.file.path} does not fit the model: {found}")


def _problems(
    layer: str, parts: FileLayer, target: LoraTarget, shapes: LayerShapes
) -> Iterator[tuple[str, str]]:
    """What is wrong with one layer of a file: (kind, description)."""
    if parts.down is None or parts.up is None:
        yield "incomplete", f"{layer} has no {'down' if parts.down is None else 'up'} factor"
        return
    down, up = parts.down.shape, parts.up.shape
    inputs, rows = shapes[target.layers[0]][1:], sum(shapes[source][0] for source in target.layers)
    if len(down) < 2 or len(up) < 2 or down[1:] != inputs or up[0] != rows or math.prod(up[2:]) != 1:
        wanted = f"[r, {', '.join(map(str, inputs))}] and [{rows}, r]"
        yield "misshapen", f"{layer} {list(down)} and {list(up)} instead of {wanted}"
    elif down[0] != up[1] or down[0] == 0:
        yield "of two ranks", f"{layer} (down {down[0]}, up {up[1]})"


def _read_layer(
    file: LoraFile, layer: str, target: LoraTarget, shapes: LayerShapes
) -> dict[str, LoraFactors]:
    """The factors of every layer that is stacked in ``layer``; they share one down factor."""
    parts = file.layers[layer]
    assert parts.down is not None, "checked"
    assert parts.up is not None, "checked"
    down, up = _read(parts.down).flatten(1), _read(parts.up).flatten(1)
    if target.has_swapped_halves:
        up = torch.cat(up.chunk(2)[::-1])
    rank = down.shape[0]
    scale = file.scale(layer, rank) if parts.alpha is None else parts.alpha / rank
    ups = up.split([shapes[source][0] for source in target.layers])
    return {source: LoraFactors(down, rows, scale) for source, rows in zip(target.layers, ups, strict=True)}


def _read(entry: TensorEntry) -> Tensor:
    """A copy: the file may be replaced while the LoRA is in use. fp8 comes as bf16."""
    tensor = map_tensor(entry)
    return tensor.clone() if tensor.dtype.itemsize > 1 else tensor.to(torch.bfloat16)


def _check_finite(lora: Lora) -> None:
    broken = [
        f"{name} ({side})"
        for name, factors in lora.factors.items()
        for side in ("down", "up")
        if not getattr(factors, side).isfinite().all()
    ]
    if broken:
        raise CheckpointError(
            f"the LoRA {lora.path} has {len(broken)} factors with NaN or infinity: {first_names(broken)}"
        )


class LoraLibrary:
    """LoRAs of one model; each file is read once, and again when it has changed."""

    def __init__(self, shapes: LayerShapes, aliases: LoraAliases) -> None:
        """An empty library for a model with the layers ``shapes``, which have ``aliases`` too."""
        self._shapes = shapes
        self._aliases = aliases
        self._files: dict[Path, tuple[tuple[int, int], Lora]] = {}
        self._paths: dict[str, Path] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names that :meth:`load` gave, in order."""
        return tuple(self._paths)

    def load(self, path: str | os.PathLike[str], name: str | None = None) -> str:
        """Read a LoRA and give it a name.

        Args:
            path: a .safetensors file, or a folder with one.
            name: what jobs call it; None takes the name of the file without its suffix.

        Returns:
            The name.

        Raises:
            ConfigError: another file has this name.
            CheckpointError: the file is damaged or does not fit the model.
        """
        resolved = _resolve(path)
        name = name or resolved.stem
        owner = self._paths.get(name)
        if owner not in (None, resolved):
            raise ConfigError(
                f"name must be new, got {name!r}, which is {owner}; give another name or unload it"
            )
        self._read(resolved)
        self._paths[name] = resolved
        return name

    def unload(self, source: str | os.PathLike[str]) -> None:
        """Forget the LoRA that is called ``source``, or whose file that is.

        Raises:
            ConfigError: there is no such LoRA.
        """
        path = self._paths.get(os.fspath(source)) or _resolve(source)
        if path not in self._files:
            raise ConfigError(f"no LoRA {os.fspath(source)!r} is loaded; loaded are: {_listed(self.names)}")
        del self._files[path]
        self._paths = {name: owner for name, owner in self._paths.items() if owner != path}

    def find(self, source: str | os.PathLike[str]) -> Lora:
        """The LoRA that is called ``source``, or that lies there; a file is read now if need be.

        Raises:
            ConfigError: neither a name nor a path that exists.
            CheckpointError: the file is damaged or does not fit the model.
        """
        path = self._paths.get(os.fspath(source))
        if path is None:
            path = _resolve(source)
            if not path.exists():
                raise ConfigError(self._missing(os.fspath(source), path))
        return self._read(path)

    def _read(self, path: Path) -> Lora:
        version = _version(path)
        if path not in self._files or self._files[path][0] != version:
            self._files[path] = version, read_lora(path, self._shapes, self._aliases)
        return self._files[path][1]

    def _missing(self, source: str, path: Path) -> str:
        nearest = difflib.get_close_matches(source, self.names, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        return (
            f"a LoRA must be a .safetensors file or the name of a loaded one, got {source!r}: {path} does not exist, and "
            f"loaded are: {_listed(self.names)}{hint}"
        )


def _resolve(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))


def _version(path: Path) -> tuple[int, int]:
    """Changes when the file is written; of an absent file the reader tells."""
    if not path.is_file():
        return 0, 0
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
