"""Which architectures there are. This is the only place that chooses between them."""

from collections.abc import Collection
from importlib import import_module

from .family import Family, PlannedModel

# Each a folder here whose module ``family`` has its ``FAMILY``; imported when it is asked for. The first one is whose
# errors tell of a model that nobody knows.
_NAMES = ("framepack",)

# The published model that is built in, which estimates are for where none is named; of the first family.
PUBLISHED_NAME = "framepack-13b"


def families() -> tuple[type[Family], ...]:
    """All families."""
    return tuple(import_module(f".{name}.family", __package__).FAMILY for name in _NAMES)


def recognise(class_name: str | None = None, tensor_names: Collection[str] = ()) -> type[Family]:
    """The family of a transformer by the ``_class_name`` of its configuration or by its tensors."""
    found = (family for family in families() if family.recognises(class_name, tensor_names))
    return next(found, families()[0])


def family_of(config: object) -> Family:
    """The model with the transformer configuration ``config``."""
    return next(family(config) for family in families() if isinstance(config, family.config_class))


def known_models() -> tuple[str, ...]:
    """Names of models that need no path: the demo, and those that the families have on the Hub."""
    return "demo", *(name for family in families() for name in family.hub_models())


def find_published(name: str) -> PlannedModel | None:
    """The model that a family has built in under ``name``; None where none has it."""
    found = (family.published(name) for family in families())
    return next((model for model in found if model is not None), None)
