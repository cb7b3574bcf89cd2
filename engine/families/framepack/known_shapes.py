"""Where the shapes of a model come from: built in for the published ones, else from its files; weights are not read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shapes import PUBLISHED_NAME, ModelShapes, published_shapes

if TYPE_CHECKING:
    from ...companions.components import Components
    from .transformer_config import TransformerConfig

_DATA = Path(__file__).parents[2] / "data"
_COMPANIONS = ("text_encoder", "text_encoder_2", "image_encoder", "vae")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """What a plan needs of a model.

    Attributes:
        shapes: of the transformer and its companions.
        buckets: (height, width) in pixels.
        order: "forward" or "inverted".
    """

    shapes: ModelShapes
    buckets: tuple[tuple[int, int], ...]
    order: str


def find_shapes(source: str, *, local_files_only: bool = False) -> KnownModel:
    """The model ``source``: "framepack-13b" and the published Hub ids are built in; others as ``Engine.load`` takes them.

    Of another Hub repository only the configuration is downloaded.

    Raises:
        CheckpointError: the model is missing, damaged or another one.
    """
    published = _read("companions.json")["models"]
    if source == PUBLISHED_NAME or source in published:
        buckets = tuple((height, width) for height, width in _read("profile.json")["buckets"])
        order = published.get(source, {}).get("order", "inverted")
        return KnownModel(shapes=published_shapes(), buckets=buckets, order=order)
    from ...checkpoints.checkpoint import read_transformer_config
    from ...companions.components import default_order, find_components
    from ...weights.store import is_store, open_store

    components = find_components(source, local_files_only=local_files_only)
    if is_store(Path(components.transformer)):
        config = open_store(components.transformer).config
    else:
        config = read_transformer_config(
            components.transformer, local_files_only=local_files_only or components.is_hub_silent
        )
    return KnownModel(
        shapes=shapes_of(components, config),
        buckets=components.profile.buckets,
        order=default_order(components.name, components.profile),
    )


def shapes_of(components: "Components", config: "TransformerConfig") -> ModelShapes:
    """The shapes of a transformer with ``config`` and its companions; those that are not local are the published ones."""
    from ...files import read_json

    configs: dict[str, Mapping[str, Any]] = {}
    for name in _COMPANIONS:
        ref = components.refs.get(name)
        path = None if ref is None else Path(ref.source) / (ref.subfolder or "") / "config.json"
        if path is not None and path.is_file():
            configs[name] = read_json(path)
    return ModelShapes.from_configs(components.name, config, configs)


def _read(name: str) -> Any:
    return json.loads((_DATA / name).read_text(encoding="utf-8"))
