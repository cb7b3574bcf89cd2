"""The card and the attention in the middle of the work: a card at rest tells nothing."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..engine.events import Event, StepEvent
from ..engine.nvml import CardState, read_card
from ..engine.transformer import PackedTransformer
from .probe import observe
from .slow_card import Observation
from .step_pace import Pace


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
            self.attention = args[0].self_attention.name

        with observe(PackedTransformer, "pack_section", note):
            yield self

    def observe(self, share: float, pace: Pace) -> Observation:
        """What was seen, for finding reasons; ``share`` is of what the card should do."""
        return Observation(
            share=share,
            state=self.state,
            total_bytes=torch.cuda.get_device_properties(self._device).total_memory,
            attention=self.attention,
            wait_share=statistics.median(pace.waits) / pace.step,
        )
