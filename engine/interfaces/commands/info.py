"""``isoframe info``: what a video says about its making, or what a model is."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ...checkpoints.hub import is_hub_id, split_revision
from ...request.config import EngineConfig
from ...request.fields import needed
from .terminal.command import command
from .terminal.options import JSON
from .terminal.printing import PlainConsole, printable

if TYPE_CHECKING:
    from ...checkpoints.checkpoint import Checkpoint
    from ...weights.store import Store


@command(config=("local_files_only",))
def info(
    config: EngineConfig,
    file: str = needed(
        "An MP4, a model folder, a unit store, a .safetensors file or a Hub id.", option="FILE"
    ),
    as_json: bool = JSON,
) -> None:
    """Show what is known about a video or a model."""
    suffix = Path(file).suffix.lower()
    is_video = suffix == ".mp4" or (Path(file).is_file() and suffix != ".safetensors")
    facts = describe_video(file) if is_video else describe_model(file, config.local_files_only)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, default=str))
    else:
        _print_table(facts)


def describe_video(path: str) -> dict[str, object]:
    """Size, length and metadata of a video file."""
    from ...media.video import read_video_info

    return dataclasses.asdict(read_video_info(path))


def describe_model(source: str, local_files_only: bool) -> dict[str, object]:
    """Name, hash, size and configuration of a transformer; its weights are not read."""
    from ...companions.components import find_components
    from ...families.opening import open_transformer
    from ...weights.store import is_store, open_store

    components = find_components(source, local_files_only=local_files_only)
    model: Checkpoint | Store
    if is_store(Path(components.transformer)):
        model = open_store(components.transformer)
        contents = _describe_store(model)
    else:
        model = open_transformer(
            components.transformer, local_files_only=local_files_only or components.is_hub_silent
        )
        contents = {
            "revision": model.revision,
            "num_tensors": len(model.shapes),
            "num_parameters": sum(math.prod(shape) for shape in model.shapes.values()),
        }
    return {
        "name": components.name,
        "source_hash": model.source_hash,
        **contents,
        "config": dataclasses.asdict(model.config),
        "companions": {name: _source(ref.source) for name, ref in components.refs.items()},
        "order": components.profile.order,
        "buckets": components.profile.buckets,
    }


def _source(source: str) -> str:
    """A companion's folder, or its repository with the revision that is taken."""
    if not is_hub_id(source) or Path(source).is_dir():
        return str(source)
    name, revision = split_revision(source)
    return f"{name}@{revision or 'main'}"


def _describe_store(store: "Store") -> dict[str, object]:
    """How the units of a unit store are stored, and what that cost."""
    noise = [decibel for decibel in store.sqnr.values() if decibel is not None]
    return {
        "precision": store.weight_format.name,
        "compute_dtype": str(store.weight_format.dtype).removeprefix("torch."),
        "num_units": len(store.units),
        "num_bytes": store.num_bytes,
        "least_sqnr_db": round(min(noise), 1) if noise else None,
    }


def _print_table(facts: Mapping[str, object]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _flatten(facts):
        table.add_row(printable(name, is_line=True), str(value))
    PlainConsole().print(table)


def _flatten(facts: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows
