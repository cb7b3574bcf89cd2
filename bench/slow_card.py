"""Why a card does less than it should: what the driver saw while it worked, and how the step was run."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ..engine.nvml import CardState

# A card that reaches less of what it should do has a reason that is worth naming.
_LOW_SHARE = 0.7
_LOW_POWER, _LOW_CLOCK, _LONG_WAIT, _FULL = 0.5, 0.75, 0.1, 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What is known of a variant that ran.

    Attributes:
        share: of what the card should do.
        state: of the card in the middle of a section; None where the driver does not answer.
        total_bytes: memory of the card.
        attention: backend that was used.
        wait_share: part of a step in which compute waited for copies.
        platform: as ``sys.platform``.
    """

    share: float
    state: CardState | None
    total_bytes: int
    attention: str
    wait_share: float
    platform: str = sys.platform


def likely_reasons(seen: Observation) -> list[str]:
    """Why a card reaches only a part of what it should; nothing if that is good enough."""
    if seen.share >= _LOW_SHARE:
        return []
    found = [*_own_reasons(seen), *(_card_reasons(seen.state, seen) if seen.state is not None else ())]
    if seen.state is None:
        return [*found, "pip install nvidia-ml-py shows power, clocks and PCIe link"]
    return found or ["nothing conspicuous in power, clocks and PCIe link"]


def _own_reasons(seen: Observation) -> Iterator[str]:
    if seen.attention == "sdpa":
        yield "attention is torch's: try flash-attn, or precision int8"
    if seen.wait_share > _LONG_WAIT:
        yield f"{seen.wait_share:.0%} of a step waits for copies of weights: allow more --vram, or more --ram"


def _card_reasons(state: CardState, seen: Observation) -> Iterator[str]:
    yield from (f"the card is slowed down by its {name}" for name in state.throttles)
    if state.clock and state.max_clock and not state.throttles and state.clock < _LOW_CLOCK * state.max_clock:
        yield f"its clock is {state.clock} of {state.max_clock} MHz"
    if state.pcie_width and state.max_pcie_width and state.pcie_width < state.max_pcie_width:
        yield f"PCIe runs with {state.pcie_width} of {state.max_pcie_width} lanes"
    generation, best = state.pcie_generation, state.max_pcie_generation
    if generation and best and generation < best:
        yield f"PCIe runs at generation {generation} of {best}"
    if seen.platform == "win32" and state.used_bytes and state.used_bytes > _FULL * seen.total_bytes:
        yield (
            "the card is full, and Windows moves what does not fit into RAM (shared GPU memory in the task manager): "
            "allow less --vram, close other programs"
        )
    if state.power and state.power_limit and state.power < _LOW_POWER * state.power_limit:
        power, limit = state.power / 1e3, state.power_limit / 1e3
        yield f"it draws {power:.0f} of {limit:.0f} W: it waits for the host, copies or the disk"
