"""Progress of a job or a conversion: a live bar on a terminal, else plain lines, or JSON, one object a line.

docs/progress_events.md describes the objects for programs.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from ....events import (
    Event,
    EventHandler,
    FileEvent,
    JobEvent,
    NoteEvent,
    PhaseEvent,
    SectionEvent,
    StepEvent,
)
from ....jobs.log import Pace, Reading, video_span
from ....request.config import UNTRAINED_ORDERS
from .printing import PlainConsole, printable

if TYPE_CHECKING:
    from ....events import ConversionEvent, OnConversion


def json_line(event: Event) -> str:
    """``{"event": kind, ...}`` with the event's fields; tensors are left out."""
    kind = type(event).__name__.removesuffix("Event").lower()
    values = {field.name: getattr(event, field.name) for field in fields(event) if field.name != "x0"}
    return json.dumps({"event": kind, **values}, default=_plain)


def _plain(value: object) -> object:
    """A dataclass inside an event as an object, anything else as text."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


# A progress line fits 80 columns; the bar before it takes the rest.
_MIN_WIDTH_FOR_BAR = 96
_PHASES = {
    "load": "loading the model",
    "text": "reading the prompt",
    "image": "reading the image",
    "prepare": "preparing the steps",
    "pack": "packing the history",
    "denoise": "denoising",
    "decode": "decoding",
    "encode": "encoding the frames",
    "checkpoint": "keeping what is finished",
    "write": "writing the file",
}


@contextmanager
def reporting(*, fps: float, is_json: bool, is_quiet: bool) -> Iterator[EventHandler]:
    """What shows the events of a job: JSON on stdout, nothing, a live bar (terminal), or a line per section (elsewhere)."""
    if is_json:
        yield print_json
        return
    with Reporter(PlainConsole(stderr=True, quiet=is_quiet), fps) as reporter:
        yield reporter.on_event


def print_json(event: Event) -> None:
    """One JSON object per event and line on stdout."""
    typer.echo(json_line(event))


class Reporter:
    """One line per phase before the first section, then one line per section; on a terminal a live bar in their place.

    The bar has section, step, pace and the place in the video.
    """

    def __init__(self, console: Console, fps: float, make_pace: Callable[[], Pace] = Pace) -> None:
        """Show the events of a video of ``fps`` frames per second on ``console``."""
        bar = [BarColumn(bar_width=12)] if console.width >= _MIN_WIDTH_FOR_BAR else []
        text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=False))
        self._console = console
        self._bar = (
            Progress(*bar, text, console=console, transient=True)
            if console.is_terminal and not console.quiet
            else None
        )
        self._task: TaskID | None = None
        self._fps = fps
        self._pace = make_pace()
        self._num_computed = self._num_skipped = 0
        self._last: StepEvent | None = None
        self._order: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_event(self, event: Event) -> None:
        """Show one event."""
        reading = self._pace.on_event(event)
        if isinstance(event, StepEvent):
            self._count(event)
        if isinstance(event, FileEvent) and self._num_skipped:
            self._tell(
                f"{self._num_computed} steps computed, {self._num_skipped} skipped by the step cache (approximate)"
            )
        elif isinstance(event, JobEvent):
            self._order = event.order
            for line in differences(event):
                self._tell(line)
        elif isinstance(event, NoteEvent):
            self._tell(event.text)
        elif isinstance(event, PhaseEvent):
            self._show_phase(_PHASES.get(event.phase, event.phase))
        elif isinstance(event, StepEvent | SectionEvent) and self._last is not None and reading is not None:
            shown = describe(self._last, reading, self._fps)
            if self._bar is None and isinstance(event, SectionEvent):
                self._tell(shown)
            elif self._bar is not None and self._task is not None and isinstance(event, StepEvent):
                done = event.section * event.num_steps + event.step + 1
                self._bar.update(self._task, completed=done, description=printable(shown))

    def _count(self, event: StepEvent) -> None:
        if self._last is None:
            self._tell(direction(event, self._order))
            if self._bar is not None:
                self._bar.start()
                self._task = self._bar.add_task("", total=event.num_sections * event.num_steps)
        self._last = event
        self._num_computed += event.is_computed
        self._num_skipped += not event.is_computed

    def _show_phase(self, name: str) -> None:
        # The bar would overwrite what is shown while models are downloaded, so it comes after that.
        if self._last is None:
            self._tell(name)
        elif self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=printable(name))

    def _tell(self, line: str) -> None:
        # A text, which no console reads as markup.
        self._console.print(Text(printable(line)), soft_wrap=True)


def direction(event: StepEvent, order: str | None = None) -> str:
    """Which end of the video comes first, told by the place of the first section."""
    if event.num_sections == 1:
        return "one section"
    if order in UNTRAINED_ORDERS:
        return f"{event.num_sections} sections, {order} order: sections that come first wait for those between them"
    if event.first_latent_frame > 1:
        return f"{event.num_sections} sections, inverted order: the end of the video comes first"
    return f"{event.num_sections} sections, forward order: the start of the video comes first"


def differences(event: JobEvent) -> Iterator[str]:
    """One line each for what the video does not take over as it was given: its length, the image's size; for its job."""
    asked, made = f"{event.requested_seconds:.1f}", f"{event.seconds:.1f}"
    image, video = (event.image_height, event.image_width), (event.height, event.width)
    if event.num_given_frames:
        added = (event.num_frames - event.num_given_frames) / event.fps
        yield f"{added:.1f} s are added to the {event.num_given_frames / event.fps:.1f} s that are given"
    elif asked != made:
        section = event.num_frames // event.num_sections / event.fps
        yield f"{asked} s asked for, {made} s are made: a video has whole sections of {section:.1f} s"
    if image != video:
        change = "scaled" if image[0] * video[1] == image[1] * video[0] else "scaled and cropped"
        yield f"the image ({image[0]}x{image[1]}, height x width) is {change} to {video[0]}x{video[1]}"
    yield from event.notes
    yield from prompt_lines(event)
    if event.job_dir is not None:
        finished = f", {event.num_finished_sections} of {event.num_sections} sections are finished"
        yield f"the job is kept in {event.job_dir}{finished if event.num_finished_sections else ''}"


def prompt_lines(event: JobEvent) -> list[str]:
    """What happens when, where that changes: seconds of video, and the place of the sections in the making."""
    if not event.prompts:
        return []
    lines = [f"prompts, in seconds of video; sections count in the order they are made ({event.order}):"]
    for slot in event.prompts:
        sections = ", ".join(str(section + 1) for section in slot.sections)
        lines.append(f"  {slot.start_seconds:.1f}-{slot.end_seconds:.1f} s (section {sections}): {slot.text}")
    return lines


def describe(event: StepEvent, reading: Reading, fps: float) -> str:
    """Section, place in the video, step and pace in one line of at most 80 columns."""
    start, end = video_span(event, fps)
    parts = [
        f"section {event.section + 1}/{event.num_sections} ({start:.1f}-{end:.1f} s) "
        f"step {event.step + 1}/{event.num_steps}",
        f"{format_pace(reading.seconds_per_step)} s/it",
    ]
    if reading.seconds_per_frame is None:
        # What decoding takes is not known yet.
        parts.append(f"ETA >{format_duration(reading.seconds_left)}")
    else:
        parts.append(f"{format_pace(reading.seconds_per_frame)} s/frame")
        parts.append(f"ETA {format_duration(reading.seconds_left)}")
    return "  ".join(parts)


def format_pace(seconds: float) -> str:
    """Three digits; no exponent for long times."""
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"


def format_duration(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from one hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_CONVERSION_PHASES = {"convert": "converting the model, once", "verify": "reading it back"}


@contextmanager
def conversion_bar(*, is_quiet: bool) -> "Iterator[OnConversion]":
    """A bar on a terminal, from the first report on; nothing elsewhere."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(True),
        TimeRemainingColumn(),
    )
    console = PlainConsole(stderr=True, quiet=is_quiet)
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    tasks = {
        phase: bar.add_task(name, total=None, visible=False) for phase, name in _CONVERSION_PHASES.items()
    }

    def on_progress(progress: "ConversionEvent") -> None:
        bar.start()
        task = tasks[progress.phase]
        bar.update(task, completed=progress.done_bytes, total=progress.total_bytes, visible=True)

    try:
        yield on_progress
    finally:
        bar.stop()
