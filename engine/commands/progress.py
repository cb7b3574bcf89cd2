"""Progress of a job on the terminal, as plain lines, or as JSON."""

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from ..events import Event, PhaseEvent, SectionEvent, StepEvent
from .pace import Pace, Reading, video_span

_PHASES = {
    "load": "loading the model",
    "text": "reading the prompt",
    "image": "reading the image",
    "denoise": "denoising",
    "decode": "decoding",
    "write": "writing the file",
}


class Reporter(Protocol):
    """Shows the events of one job; a context manager."""

    def on_event(self, event: Event) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def make_reporter(*, fps: float, is_json: bool, is_quiet: bool) -> Reporter:
    """JSON on stdout, nothing, a live bar (terminal), or a line per section (anything else)."""
    if is_json:
        return JsonReporter(sys.stdout)
    console = Console(stderr=True, quiet=is_quiet, highlight=False)
    return BarReporter(console, fps) if console.is_terminal and not is_quiet else LineReporter(console, fps)


class _Plain:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


class JsonReporter(_Plain):
    """One JSON object per event and line; tensors are left out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def on_event(self, event: Event) -> None:
        kind = type(event).__name__.removesuffix("Event").lower()
        values = {field.name: getattr(event, field.name) for field in fields(event) if field.name != "x0"}
        self._stream.write(json.dumps({"event": kind, **values}, default=str) + "\n")
        self._stream.flush()


class LineReporter(_Plain):
    """One line per phase before the first section, then one line per section."""

    def __init__(self, console: Console, fps: float, make_pace: Callable[[], Pace] = Pace) -> None:
        self._console = console
        self._fps = fps
        self._pace = make_pace()
        self._last: tuple[StepEvent, Reading] | None = None

    def on_event(self, event: Event) -> None:
        reading = self._pace.on_event(event)
        if isinstance(event, StepEvent) and reading is not None:
            if self._last is None:
                self._console.print(direction(event))
            self._last = event, reading
        elif isinstance(event, SectionEvent) and self._last is not None:
            self._console.print(describe(*self._last, self._fps), soft_wrap=True)
        elif isinstance(event, PhaseEvent) and self._last is None:
            self._console.print(_PHASES.get(event.phase, event.phase))


class BarReporter:
    """A line per phase, then a live bar: section, step, pace and the place in the video."""

    def __init__(self, console: Console, fps: float) -> None:
        self._progress = Progress(
            BarColumn(bar_width=12),
            TextColumn("{task.description}", table_column=Column(no_wrap=False)),
            console=console,
            transient=True,
        )
        self._fps = fps
        self._pace = Pace()
        self._task: TaskID | None = None

    def on_event(self, event: Event) -> None:
        reading = self._pace.on_event(event)
        if isinstance(event, StepEvent) and reading is not None:
            self._show_step(event, reading)
        elif isinstance(event, PhaseEvent):
            self._show_phase(_PHASES.get(event.phase, event.phase))

    def _show_phase(self, name: str) -> None:
        # The bar would overwrite what is shown while models are downloaded, so it comes after that.
        if self._task is None:
            self._progress.console.print(name)
        else:
            self._progress.update(self._task, description=name)

    def _show_step(self, event: StepEvent, reading: Reading) -> None:
        if self._task is None:
            self._progress.console.print(direction(event))
            self._progress.start()
            self._task = self._progress.add_task("", total=event.num_sections * event.num_steps)
        self._progress.update(
            self._task,
            completed=event.section * event.num_steps + event.step + 1,
            description=describe(event, reading, self._fps),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()


def direction(event: StepEvent) -> str:
    """Which end of the video comes first, told by the place of the first section."""
    if event.num_sections == 1:
        return "one section"
    if event.first_latent_frame > 1:
        return f"{event.num_sections} sections, inverted order: the end of the video comes first"
    return f"{event.num_sections} sections, forward order: the start of the video comes first"


def describe(event: StepEvent, reading: Reading, fps: float) -> str:
    """Section, step, place in the video and pace in one line."""
    start, end = video_span(event, fps)
    return (
        f"section {event.section + 1}/{event.num_sections} (video {start:.1f}-{end:.1f} s) "
        f"step {event.step + 1}/{event.num_steps}  {reading.seconds_per_step:.3g} s/it  "
        f"{reading.seconds_per_frame:.3g} s/frame  ETA {format_duration(reading.seconds_left)}"
    )


def format_duration(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from one hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
