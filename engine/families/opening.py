"""Transformers of any family, found on the disk or on the Hub."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from ..checkpoints.checkpoint import Checkpoint, ConfigReader, open_checkpoint, read_checkpoint_config
from .registry import recognise


def read_config(raw: Mapping[str, Any], *, source: str) -> Any:
    """The configuration in ``raw``, a transformer's ``config.json``; ``source`` names it in errors."""
    return recognise(class_name=raw.get("_class_name")).read_config(raw, source=source)


def _derive_config(shapes: Mapping[str, tuple[int, ...]], *, source: str) -> Any:
    return recognise(tensor_names=shapes).derive_config(shapes, source=source)


_READER = ConfigReader(read_config, _derive_config)


def open_transformer(
    source: "str | os.PathLike[str]",
    *,
    local_files_only: bool = False,
    admit: Callable[[str, Any], None] | None = None,
) -> Checkpoint:
    """Find a transformer, see :func:`~isoframe.engine.checkpoints.checkpoint.open_checkpoint`."""
    return open_checkpoint(source, _READER, local_files_only=local_files_only, admit=admit)


def read_transformer_config(source: "str | os.PathLike[str]", *, local_files_only: bool = False) -> Any:
    """The configuration of a transformer; of a Hub repository nothing else is downloaded."""
    return read_checkpoint_config(source, _READER, local_files_only=local_files_only)
