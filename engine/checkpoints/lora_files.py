"""LoRA files: safetensors only, sorted by layer; nothing about a model is known here."""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError
from ..files import parse_json
from .lora_names import without_prefix
from .tensor_files import FLOAT_DTYPES, TensorEntry, TensorFile, map_tensor, open_tensor_file, refuse_pickle

_SIDES = {"lora_A": "down", "lora_B": "up", "lora_down": "down", "lora_up": "up"}
_SIDES |= {"lora.down": "down", "lora.up": "up"}
# PEFT writes the adapter's name before ".weight" when it saves the state of a live model.
_FACTOR = re.compile(r"(?P<layer>.+)\.(?P<side>lora_(?:A|B|down|up)|lora\.(?:down|up))(?:\.\w+)?\.weight")
_ALPHA_SUFFIX = ".alpha"
# Where diffusers keeps the adapter's configuration, and the file that PEFT writes beside the weights.
_METADATA_KEY = "lora_adapter_metadata"
_PEFT_WEIGHTS, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# PEFT reads the keys of alpha_pattern as regular expressions; what is written by programs are the ends of names.
_PLAIN_PATTERN = re.compile(r"\^?[\w.]+")


@dataclass(slots=True)
class FileLayer:
    """What a file holds for one layer.

    Attributes:
        down: entry of the factor [r, in]; None if the file lacks it.
        up: entry of the factor [out, r]; None if the file lacks it.
        alpha: the product of the factors is scaled by alpha / r; None if the file does not say.
    """

    down: TensorEntry | None = None
    up: TensorEntry | None = None
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA file whose header is sound.

    Attributes:
        file: the safetensors file.
        layers: what it holds, by the layer's name in the file.
        unknown: tensors that are no LoRA factors.
        scale: factor of the product for (layer's name, rank) where the layer has no alpha of its own.
    """

    file: TensorFile
    layers: dict[str, FileLayer] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    scale: Callable[[str, int], float] = lambda _name, _rank: 1.0


def open_lora_file(path: str | os.PathLike[str]) -> LoraFile:
    """Sort the tensors of a LoRA file by layer; no factor is read.

    Args:
        path: the file, or a folder with one.

    Raises:
        CheckpointError: absent, damaged, pickled, or no safetensors file.
    """
    found = _find_file(Path(path).expanduser())
    refuse_pickle(found)
    _check_suffix(found)
    file = open_tensor_file(found)
    lora = LoraFile(file, scale=_scale_rule(file))
    for name, entry in file.entries.items():
        _sort_in(lora, name, entry)
    if not lora.layers:
        raise CheckpointError(
            f"{found} is no LoRA: none of its {len(file.entries)} tensors is a lora_A, lora_B, lora_down or lora_up"
        )
    return lora


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise CheckpointError(
            f"{path} must have one .safetensors file, got {len(found)}; name the LoRA's file"
        )
    return found[0]


def _check_suffix(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} must be a .safetensors file; convert the LoRA to safetensors")


def _sort_in(lora: LoraFile, name: str, entry: TensorEntry) -> None:
    if name.endswith(_ALPHA_SUFFIX):
        layer = lora.layers.setdefault(name.removesuffix(_ALPHA_SUFFIX), FileLayer())
        layer.alpha = _read_alpha(name, entry)
        return
    match = _FACTOR.fullmatch(name)
    if match is None or entry.dtype not in FLOAT_DTYPES:
        lora.unknown.append(name)
        return
    layer, side = lora.layers.setdefault(match["layer"], FileLayer()), _SIDES[match["side"]]
    if getattr(layer, side) is not None:
        lora.unknown.append(f"{name} (a second {match['side']} of {match['layer']})")
        return
    setattr(layer, side, entry)


def _read_alpha(name: str, entry: TensorEntry) -> float:
    if entry.shape not in ((), (1,)):
        raise CheckpointError(f"{entry.path}: {name} must be one number, got shape {list(entry.shape)}")
    return _finite(map_tensor(entry).item(), name, entry.path)


def _scale_rule(file: TensorFile) -> Callable[[str, int], float]:
    """The rule of the adapter's configuration; alpha = r, and so 1, where there is none."""
    source, config = _adapter_config(file)
    if not config:
        return lambda _name, _rank: 1.0
    for key in ("use_dora", "use_qalora"):
        if config.get(key):
            raise CheckpointError(f"{source} has {key}, which is not supported; give a plain LoRA")
    alpha = config.get("lora_alpha")
    if alpha is None:
        raise CheckpointError(f"{source} must have lora_alpha, got {', '.join(sorted(config)) or 'nothing'}")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{source}: alpha_pattern must map layers to numbers, got {patterns!r}")
    for pattern in patterns:
        if _PLAIN_PATTERN.fullmatch(pattern) is None:
            raise CheckpointError(f"{source}: alpha_pattern must name layers, got the expression {pattern!r}")
    alphas = {pattern: _finite(value, "alpha_pattern", file.path) for pattern, value in patterns.items()}
    default, is_root = _finite(alpha, "lora_alpha", file.path), bool(config.get("use_rslora"))

    def scale(name: str, rank: int) -> float:
        name = without_prefix(name)
        own = next((value for key, value in alphas.items() if _matches(key, name)), default)
        return own / (math.sqrt(rank) if is_root else rank)

    return scale


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a layer as PEFT does: the end of its name from a dot on, or with "^" the whole name."""
    return name == pattern.removeprefix("^") or (not pattern.startswith("^") and name.endswith(f".{pattern}"))


def _adapter_config(file: TensorFile) -> tuple[Path, Mapping[str, object]]:
    """The adapter's configuration, and the file that it is in; empty if there is none."""
    beside = file.path.with_name(_PEFT_CONFIG)
    if file.path.name == _PEFT_WEIGHTS and beside.is_file():
        return beside, _read_config(beside, lambda: beside.read_text(encoding="utf-8"))
    metadata = parse_json(file.header).get("__metadata__")
    if not isinstance(metadata, dict) or _METADATA_KEY not in metadata:
        return file.path, {}
    config = _read_config(file.path, lambda: str(metadata[_METADATA_KEY]))
    return file.path, {without_prefix(key): value for key, value in config.items()}


def _read_config(path: Path, read: Callable[[], str]) -> dict[str, object]:
    try:
        config = parse_json(read())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} has an unreadable LoRA configuration: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} has a LoRA configuration that is no object: {type(config).__name__}")
    return config


def _finite(value: object, name: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{path}: {name} must be a finite number, got {value!r}")
    return float(value)
