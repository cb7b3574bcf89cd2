"""Transformers of any family, found on the disk or on the Hub."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from ..checkpoints.checkpoint import Checkpoint, Shapes, open_checkpoint, read_checkpoint_config
from .registry import known_models, recognise


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
    admit: Callable[[str, Any], None] | None = None,
) -> Checkpoint:
    """Find a transformer, see :func:`~isoframe.engine.checkpoints.checkpoint.open_checkpoint`."""
    return open_checkpoint(
        source, read_config, local_files_only=local_files_only, admit=admit, known=known_models()
    )


def read_transformer_config(source: "str | os.PathLike[str]", *, local_files_only: bool = False) -> Any:
    """The configuration of a transformer; of a Hub repository nothing else is downloaded."""
    return read_checkpoint_config(
        source, read_config, local_files_only=local_files_only, known=known_models()
    )
