"""A configuration as a dictionary of JSON's values, and back: for job records, metadata, servers and settings."""

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args

T = TypeVar("T")
# Types of fields, and those of JSON's values for them.
_PLAIN_TYPES = {
    bool: (bool,), int: (int,), float: (float, int), str: (str,), Path: (str,), NoneType: (NoneType,)
}  # fmt: skip


def to_dict(configuration: object) -> dict[str, Any]:
    """All fields of a dataclass; paths become text, tuples lists, and pictures in memory None."""
    return {entry.name: _plain(getattr(configuration, entry.name)) for entry in fields(configuration)}  # type: ignore[arg-type]  # any dataclass


def from_dict(configuration: type[T], values: Mapping[str, Any]) -> T:
    """What :func:`to_dict` wrote; fields that are missing take their defaults.

    Lists become tuples, text a path, and objects dataclasses where the type of a field says so.

    Raises:
        TypeError: a field is unknown, of another type, or one without a default is missing.
        ConfigError: of the constructor.
    """
    types = {entry.name: entry.type for entry in fields(configuration)}  # type: ignore[arg-type]  # any dataclass
    return configuration(**{name: _made(types.get(name), value, name) for name, value in values.items()})


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return to_dict(value) if is_dataclass(value) else None


def _made(declared: Any, value: object, name: str) -> object:
    _check_type(declared, value, name)
    if isinstance(value, list):
        item = next(iter(get_args(declared)), None)
        return tuple(_made(item, entry, name) for entry in value)
    if isinstance(value, Mapping) and is_dataclass(declared):
        return from_dict(declared, value)  # type: ignore[arg-type]  # a class: no field's type is an instance
    return Path(value) if declared is Path and isinstance(value, str) else value


def _check_type(declared: Any, value: object, name: str) -> None:
    """Raise TypeError where ``declared`` is one of JSON's own types, or a few of them, and ``value`` of none."""
    kinds = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    if not set(kinds) <= _PLAIN_TYPES.keys():
        return
    if type(value) not in {kind for declared in kinds for kind in _PLAIN_TYPES[declared]}:
        names = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be {names}, got {value!r}")
