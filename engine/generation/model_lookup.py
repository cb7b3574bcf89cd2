"""What a plan needs of a model: built in for the published ones, else from its files; weights are not read."""

from pathlib import Path

from ..families.family import PlannedModel
from ..families.registry import family_of, find_published


def find_model(source: str, *, local_files_only: bool = False) -> PlannedModel:
    """The model ``source``: the published ones are built in, by their families' names and Hub ids; others as ``Engine.load`` takes them.

    Of another Hub repository only the configuration is downloaded.

    Raises:
        CheckpointError: the model is missing, damaged or another one.
    """
    published = find_published(source)
    if published is not None:
        return published
    from ..companions.components import find_components
    from ..families.opening import read_transformer_config
    from ..weights.store import is_store, open_store

    components = find_components(source, local_files_only=local_files_only)
    if is_store(Path(components.transformer)):
        config = open_store(components.transformer).config
    else:
        config = read_transformer_config(
            components.transformer, local_files_only=local_files_only or components.is_hub_silent
        )
    return PlannedModel(
        shapes=family_of(config).sizes(components.name, components.read_configs()),
        buckets=components.profile.buckets,
        order=components.default_order,
    )
