"""Graphics cards that the planner knows: tensor-core rates, bandwidths, memory."""

import difflib
import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from .errors import ConfigError

_DATA = Path(__file__).parent / "data" / "cards.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a card can do at best; sources are in ``data/cards.json``.

    Attributes:
        name: as in the table, or the device's own with ``is_estimate``.
        capability: compute capability, 10 * major + minor.
        sms: multiprocessors.
        bf16: dense TFLOPS with fp32 accumulation; fp16 is the same.
        fp16_accumulate: dense fp16 TFLOPS with fp16 accumulation.
        int8: dense TOPS.
        fp8: dense TFLOPS with fp32 accumulation; None where the card has no fp8.
        bandwidth: of its memory, GB/s.
        h2d: copies from pinned host memory, GB/s.
        memory: GiB on the box.
        is_estimate: the card is not in the table; the figures are a neutral guess.
    """

    name: str
    capability: int
    sms: int
    bf16: float
    fp16_accumulate: float
    int8: float
    fp8: float | None
    bandwidth: float
    h2d: float
    memory: float
    is_estimate: bool = False

    @property
    def memory_bytes(self) -> int:
        return int(self.memory * 2**30)


@cache
def cards() -> dict[str, Card]:
    """All cards of the table by name."""
    return {name: Card(name=name, **figures) for name, figures in _table()["cards"].items()}


def find_card(name: str) -> Card:
    """The card that a user calls ``name``; case, spaces, brand and memory size do not matter.

    Raises:
        ConfigError: no such card in the table; the message names the nearest.
    """
    known = {_key(card): card for card in cards()}
    card = known.get(_key(name)) or known.get(_key(f"RTX {name}"))
    if card is not None:
        return cards()[card]
    nearest = difflib.get_close_matches(_key(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(known[key] for key in nearest)}?" if nearest else ""
    raise ConfigError(
        f"card must be one of {', '.join(cards())}, got {name!r}" + (f"; {hint}" if hint else "")
    )


def card_of_device(device_name: str) -> Card:
    """The card that CUDA calls ``device_name``, such as "NVIDIA GeForce RTX 3060 Laptop GPU"; else an estimate."""
    matches = [card for key, card in ((_key(c), c) for c in cards()) if key == _key(device_name)]
    return cards()[matches[0]] if matches else neutral_card(device_name)


def neutral_card(name: str) -> Card:
    """A cautious guess for a card that is not in the table, labelled as an estimate."""
    return replace(cards()[_table()["neutral"]], name=name, is_estimate=True)


def _key(name: str) -> str:
    """What is left of a name without brand, form and memory size."""
    name = re.sub(r"\d+\s*gi?b\b", "", name.lower())
    name = re.sub(r"nvidia|geforce|gpu|graphics|pcie|sxm\d*|hbm\d*e?|80gb", "", name)
    return re.sub(r"[^a-z0-9]", "", name)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(_DATA.read_text(encoding="utf-8"))
    return table
