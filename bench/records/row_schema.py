"""Whether a row fits ``data/row.json``: the keywords of JSON Schema that it uses, without a library.

Rows are checked where they are written, and a rented GPU machine has torch and Triton, and little else.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

_SCHEMA = Path(__file__).resolve().parents[1] / "data" / "row.json"
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


@cache
def load_schema() -> dict[str, Any]:
    """The schema of a row."""
    schema: dict[str, Any] = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    return schema


def find_violations(value: Any, schema: Mapping[str, Any], path: str = "row") -> Iterator[str]:
    """What of ``value`` breaks ``schema``, in words, each with its path; nothing if all is well."""
    allowed = schema.get("type")
    if allowed is not None and not _has_type(value, allowed):
        yield f"{path} must be {_in_words(allowed)}, got {_excerpt(value)}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{path} must be {schema['const']!r}, got {_excerpt(value)}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path} must be one of {', '.join(schema['enum'])}, got {_excerpt(value)}"
    if isinstance(value, str | list) and len(value) < schema.get("minLength", schema.get("minItems", 0)):
        yield f"{path} must not be empty"
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from find_violations(item, schema["items"], f"{path}[{index}]")
    if isinstance(value, dict):
        yield from _find_in_object(value, schema, path)
    yield from _find_in_alternatives(value, schema, path)


def _find_in_object(value: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    properties: Mapping[str, Any] = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name} is missing"
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        if name in properties:
            yield from find_violations(item, properties[name], f"{path}.{name}")
        elif others is False:
            yield f"{path}.{name} is unknown"
        elif isinstance(others, dict):
            yield from find_violations(item, others, f"{path}.{name}")


def _find_in_alternatives(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Each entry of ``allOf`` is an ``anyOf`` whose description says what is asked for."""
    for rule in schema.get("allOf", ()):
        if all(any(True for _ in find_violations(value, option, path)) for option in rule["anyOf"]):
            yield f"{path}: {rule['description']}"


def _has_type(value: Any, allowed: str | list[str]) -> bool:
    names = [allowed] if isinstance(allowed, str) else allowed
    # Python's booleans are integers, JSON's are not.
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, _TYPES[name]) for name in names)


def _in_words(allowed: str | list[str]) -> str:
    return allowed if isinstance(allowed, str) else " or ".join(allowed)


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
