"""Events as JSON, one object a line; docs/progress_events.md describes them for programs."""

import json
from dataclasses import asdict, fields, is_dataclass

from ..events import Event


def json_line(event: Event) -> str:
    """``{"event": kind, ...}`` with the event's fields; tensors are left out."""
    kind = type(event).__name__.removesuffix("Event").lower()
    values = {field.name: getattr(event, field.name) for field in fields(event) if field.name != "x0"}
    return json.dumps({"event": kind, **values}, default=_plain)


def _plain(value: object) -> object:
    """A dataclass inside an event as an object, anything else as text."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
