"""What a job copies to its device and waits for, section by section, told by the streamer's own events."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from ...engine.events import Event as JobEvent
from ...engine.events import PhaseEvent
from ...engine.model.units import UnitSource
from ...engine.weights import memory as model_memory
from ...engine.weights import transformer_from_store
from ...engine.weights.device_copies import CopySpan
from ...engine.weights.store import Store
from ...engine.weights.unit_timeline import EventLog, exposed_wait
from ...engine.weights.work_streams import Event
from .method_watch import replace


class SectionStreams(EventLog):
    """Parts the events of copies and uses by section; :meth:`on_event` tells where one begins.

    Where all units stay on the device nothing is copied and nothing is waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logs: list[EventLog] = []
        self._copied: list[int] = []
        self._unit_bytes: list[int] = []

    def on_event(self, event: JobEvent) -> None:
        """Take an event of the job."""
        if isinstance(event, PhaseEvent) and event.phase == "pack":
            self._logs.append(EventLog())
            self._copied.append(0)

    def copied(self, unit: int, span: CopySpan) -> None:
        if self._logs:
            # A copy for the next section's first step belongs to the section in which it is asked for.
            self._copied[-1] += self._unit_bytes[unit]

    def acquired(self, unit: int, slot: int, wanted: Event, start: Event) -> None:
        if self._logs:
            self._logs[-1].acquired(unit, slot, wanted, start)

    def released(self, unit: int, end: Event) -> None:
        if self._logs:
            self._logs[-1].released(unit, end)

    @property
    def copied_bytes(self) -> list[int]:
        """Weights copied to the device in each section."""
        return list(self._copied)

    @property
    def waits(self) -> list[float]:
        """Seconds in each section in which compute had nothing to do but wait for a copy."""
        return [exposed_wait(log.timings()) for log in self._logs]

    @contextmanager
    def watching(self) -> Iterator["SectionStreams"]:
        """Units that are placed inside the block report here."""
        open_units: Callable[..., UnitSource] = transformer_from_store.open_units

        def open_watched(store: Store, *args: object, **kwargs: object) -> UnitSource:
            self._unit_bytes = [layout.num_bytes for layout in store.layouts]
            return partial(open_units, log=self)(store, *args, **kwargs)

        with replace(model_memory, "open_units", open_watched):
            yield self
