"""Why a card does less than it should: what the driver tells of it in the middle of the work, and how the step was run."""

import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...engine.events import Event, StepEvent
from ...engine.families.framepack.transformer import PackedTransformer
from ...engine.planning.nvml import CardState, read_card
from ..meters.method_watch import observe
from .step_pace import StepPace

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


class BusyCard:
    """Looks at the card once, in the middle of the last section, and at the attention of every section.

    Attributes:
        state: what was seen; None before, on the CPU, and where the driver does not answer.
        attention: backend of the last section; "unknown" before.
    """

    def __init__(self, device: torch.device, num_sections: int, num_steps: int) -> None:
        self.state: CardState | None = None
        self.attention = "unknown"
        self._device = device
        self._moment = (num_sections - 1, num_steps // 2)

    def on_event(self, event: Event) -> None:
        """Take an event of the job."""
        is_now = isinstance(event, StepEvent) and (event.section, event.step) == self._moment
        if is_now and self._device.type == "cuda":
            self.state = read_card(self._device)

    @contextmanager
    def watching(self) -> Iterator["BusyCard"]:
        """Note the attention of what runs inside the block."""

        def note(args: tuple[Any, ...], _: object) -> None:
            _, *_, context = args
            self.attention = context.attention.name

        with observe(PackedTransformer, "step", note):
            yield self

    def observe(self, share: float, pace: StepPace) -> Observation:
        """What was seen, for finding reasons; ``share`` is of what the card should do."""
        return Observation(
            share=share,
            state=self.state,
            total_bytes=torch.cuda.get_device_properties(self._device).total_memory,
            attention=self.attention,
            wait_share=statistics.median(pace.waits) / pace.step,
        )
