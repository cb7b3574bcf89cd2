"""Transformers of any family, found on the disk or on the Hub."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import (
    INDEX_NAME,
    WEIGHTS_NAME,
    Checkpoint,
    Shapes,
    check_shards,
    folder_name,
    hash_files,
    missing_source,
    read_entries,
    read_index,
)
from ..checkpoints.hub import hub_file, is_cached, is_hub_id, require_hub_file, split_revision
from ..checkpoints.tensor_files import TensorFile, open_tensor_file
from ..errors import CheckpointError, UnknownModelError, first_names
from ..files import read_json
from .registry import known_models, recognise

Admit = Callable[[str, Any], None]


def read_config(raw: Mapping[str, Any], shapes: Shapes | None = None, *, source: str) -> Any:
    """A transformer's configuration.

    Args:
        raw: the content of its ``config.json``.
        shapes: of its tensors by name, where there is no such file.
        source: names it in errors.
    """
    return recognise(raw.get("_class_name"), shapes or ()).read_config(raw, shapes, source=source)


def open_transformer(
    source: "str | os.PathLike[str]",
    *,
    local_files_only: bool = False,
    admit: Admit | None = None,
) -> Checkpoint:
    """Find a transformer and check its files; no weights are read.

    Args:
        source: a folder (flat, or a pipeline with ``transformer/`` inside), a single ``.safetensors`` file, a Hub
            id "owner/name", or one file of a Hub repository, "owner/name/file.safetensors". A path that exists
            wins over a Hub id.
        local_files_only: never ask the Hub; what is not cached is an error.
        admit: called with name and config, and raises to refuse the model; of a Hub repository before its
            weights are downloaded.
    """
    text = os.fspath(source)
    if _is_repository(text):
        return _open_repository(text, local_files_only, admit)
    checkpoint = _open_path_or_file(text, local_files_only)
    if admit is not None:
        admit(checkpoint.name, checkpoint.config)
    return checkpoint


def read_transformer_config(source: "str | os.PathLike[str]", *, local_files_only: bool = False) -> Any:
    """The config of a transformer, arguments as for :func:`open_transformer`, and nothing else where it is a file."""
    text = os.fspath(source)
    if _is_repository(text):
        return _read_config(_find_hub_config(text, local_files_only)[1])
    path = _transformer_folder(Path(text).expanduser()) / "config.json"
    if path.is_file():
        return _read_config(path)
    return _open_path_or_file(text, local_files_only).config


def _is_repository(text: str) -> bool:
    return is_hub_id(text) and not Path(text).expanduser().exists()


def _open_path_or_file(text: str, local_files_only: bool) -> Checkpoint:
    path = Path(text).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if path.exists():
        return _open_file(path, name=path.stem)
    repository, _, filename = text.rpartition("/")
    if is_hub_id(repository) and filename.endswith(".safetensors"):
        path = require_hub_file(repository, filename, local_files_only=local_files_only)
        return _open_file(path, name=Path(filename).stem)
    raise UnknownModelError(missing_source("model", text, known_models()))


def _open_folder(folder: Path) -> Checkpoint:
    if (folder / "manifest.json").is_file():
        raise CheckpointError(
            f"{folder} is a unit store already; give the model that it was made from, or load the store as it is"
        )
    inner = _transformer_folder(folder)
    files, weight_map = _find_files(inner)
    if not (inner / "config.json").is_file():
        raise CheckpointError(f"{inner} has no config.json; copy it from the model's repository")
    config = _read_config(inner / "config.json")
    return _build(files, weight_map, config, folder_name(folder), str(inner))


def _transformer_folder(folder: Path) -> Path:
    """Where the transformer lies in ``folder``, which may be a whole pipeline."""
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def _open_file(path: Path, *, name: str) -> Checkpoint:
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} must be a .safetensors file; convert other formats to safetensors first"
        )
    beside = path.parent / "config.json"
    config = _read_config(beside) if beside.is_file() else None
    return _build([open_tensor_file(path)], {}, config, name, str(path))


def _open_repository(repository: str, local_files_only: bool, admit: Admit | None) -> Checkpoint:
    """Fetch the config first, so that a model is refused before its weights are downloaded."""
    name, _ = split_revision(repository)
    prefix, config_path = _find_hub_config(repository, local_files_only)
    config = _read_config(config_path)
    if admit is not None:
        admit(name, config)
    weight_map = _find_hub_index(repository, prefix, local_files_only)
    names = sorted(set(weight_map.values())) or [WEIGHTS_NAME]
    files = [
        open_tensor_file(require_hub_file(repository, prefix + file, local_files_only=local_files_only))
        for file in names
    ]
    return _build(files, weight_map, config, name, repository)


def _find_hub_config(repository: str, local_files_only: bool) -> tuple[str, Path]:
    """Folder prefix and local path of the transformer's config; what is cached shows the layout offline."""
    prefixes = ("", "transformer/")
    cached = [prefix for prefix in prefixes if is_cached(repository, f"{prefix}config.json")]
    for prefix in cached or prefixes:
        path = hub_file(repository, f"{prefix}config.json", local_files_only=local_files_only)
        if path is not None:
            return prefix, path
    raise CheckpointError(f"{repository} on the Hub has neither config.json nor transformer/config.json")


def _find_hub_index(repository: str, prefix: str, local_files_only: bool) -> dict[str, str]:
    index_name = prefix + INDEX_NAME
    if is_cached(repository, prefix + WEIGHTS_NAME) and not is_cached(repository, index_name):
        return {}
    index = hub_file(repository, index_name, local_files_only=local_files_only)
    return read_index(index) if index is not None else {}


def _find_files(folder: Path) -> tuple[list[TensorFile], dict[str, str]]:
    """The folder's weight files, and the index's map from tensor name to file (empty for a single file)."""
    index = folder / INDEX_NAME
    if index.is_file():
        weight_map = check_shards(index)
        return [open_tensor_file(folder / name) for name in sorted(set(weight_map.values()))], weight_map
    found = sorted(folder.glob("*.safetensors"))
    if len(found) > 1 and folder / WEIGHTS_NAME in found:
        found = [folder / WEIGHTS_NAME]
    if len(found) == 1:
        return [open_tensor_file(found[0])], {}
    if found:
        raise CheckpointError(
            f"{folder} has {len(found)} .safetensors files and no {INDEX_NAME}; copy the index beside them, or "
            "name one of the files"
        )
    pickles = [
        path.name for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
    ]
    if pickles:
        raise CheckpointError(
            f"{folder} has only pickled weights ({first_names(pickles)}), which can run code when they are loaded; "
            "convert them to safetensors"
        )
    raise CheckpointError(f"{folder} has no .safetensors file and no transformer/ folder with one")


def _build(
    files: list[TensorFile],
    weight_map: Mapping[str, str],
    config: Any | None,
    name: str,
    source: str,
) -> Checkpoint:
    entries, scales = read_entries(files, weight_map, source)
    if config is None:
        config = read_config({}, {key: entry.shape for key, entry in entries.items()}, source=source)
    return Checkpoint(config=config, name=name, source_hash=hash_files(files), entries=entries, scales=scales)


def _read_config(path: Path) -> Any:
    return read_config(read_json(path), source=str(path))
