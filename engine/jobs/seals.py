"""JSON records with a hash of each value, which tell what was changed since they were written."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..files import parse_json

_HASHES = "hashes"
_NUM_DIGITS = 12


def seal(values: Mapping[str, Any]) -> str:
    """JSON of ``values`` with the hashes of all of them, those of nested objects by "outer.inner"."""
    # As they come back: tuples are lists then.
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return json.dumps({**plain, _HASHES: dict(_hashes(plain))}, indent=2)


def unseal(content: str | bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values in what :func:`seal` wrote, and the names of those that are not as they were.

    Records of 0.1.0 carry no hashes: nothing is known to have changed in them.

    Raises:
        ValueError: it is no JSON object.
    """
    values = parse_json(content)
    if not isinstance(values, dict):
        raise ValueError(f"it must be a JSON object, got {type(values).__name__}")
    if _HASHES not in values:
        return values, ()
    then, now = values.pop(_HASHES), dict(_hashes(values))
    if not isinstance(then, dict):
        return values, (_HASHES,)
    return values, tuple(name for name in now | then if now.get(name) != then.get(name))


def unseal_whole(content: str | bytes) -> dict[str, Any]:
    """The values in what :func:`seal` wrote; raises ValueError where one of them has changed, too."""
    values, changed = unseal(content)
    if changed:
        raise ValueError(f"changed since it was written: {', '.join(changed)}")
    return values


def _hashes(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value and not prefix:
            yield from _hashes(value, f"{name}.")
            continue
        text = json.dumps(value, sort_keys=True)
        yield prefix + name, hashlib.sha256(text.encode()).hexdigest()[:_NUM_DIGITS]
