"""Amounts of memory as people write them: ``6GiB``, ``512MiB``, ``6GB`` or a number of bytes."""

import re

from ..errors import ConfigError

Size = int | str

_UNITS: dict[str, int] = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[f"{_letter}ib"] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power
_PATTERN = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)", re.IGNORECASE)


def parse_size(argument: str, value: Size, *, available: int | None = None, owner: str = "the device") -> int:
    """Bytes that ``value`` stands for.

    Args:
        argument: name of the option, for errors.
        value: bytes, or text such as "6GiB" (1024^3) and "6GB" (1000^3); a fraction is rounded down to bytes.
        available: most that there is; None does not compare.
        owner: who has ``available``.

    Raises:
        ConfigError: no positive amount, or more than ``available``.
    """
    number = _bytes(value)
    if number is None or number < 1:
        raise ConfigError(f"{argument} must be a positive size such as 6GiB, 6GB or 512MiB, got {value!r}")
    if available is not None and number > available:
        raise ConfigError(
            f"{argument} must be at most the {format_size(available)} that {owner} has, got {value!r}; "
            f"leave {argument} out to use what is free"
        )
    return number


def _bytes(value: Size) -> int | None:
    """Bytes that ``value`` stands for; None where it is no amount."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    match = _PATTERN.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2].lower() not in _UNITS:
        return None
    whole, _, fraction = match[1].partition(".")
    # In integers: a float has no room for the bytes of a terabyte and their fractions.
    scale: int = 10 ** len(fraction)
    return int(whole + fraction) * _UNITS[match[2].lower()] // scale


def format_size(num_bytes: int) -> str:
    """``num_bytes`` for people: "5.98 GiB", "512 MiB"."""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.2f} GiB"
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes >= 2**20 else f"{num_bytes} B"
