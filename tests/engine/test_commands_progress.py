"""What a user sees of a running job."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from isoframe.engine.commands.pace import Pace, video_span
from isoframe.engine.commands.progress import (
    BarReporter,
    JsonReporter,
    LineReporter,
    format_duration,
    make_reporter,
)
from isoframe.engine.events import Event, FileEvent, PhaseEvent, SectionEvent, StepEvent

NUM_SECTIONS, NUM_STEPS, WINDOW = 2, 4, 9


def step_event(section: int, step: int, *, is_inverted: bool = True) -> StepEvent:
    place = NUM_SECTIONS - 1 - section if is_inverted else section
    return StepEvent(
        section=section,
        num_sections=NUM_SECTIONS,
        step=step,
        num_steps=NUM_STEPS,
        is_computed=True,
        first_latent_frame=1 + WINDOW * place,
        x0=torch.zeros(1, 16, WINDOW, 2, 2),
    )


def section_event(section: int) -> SectionEvent:
    return SectionEvent(section=section, num_sections=NUM_SECTIONS, num_final_frames=3, num_frames=73)


def job(*, is_inverted: bool = True) -> Iterator[tuple[float, Event]]:
    """Loading takes 100 s, a step 2 s, the decoding of a section 28 s; (time, event) pairs."""
    yield 100.0, PhaseEvent(phase="denoise")
    for section in range(NUM_SECTIONS):
        start = 100.0 + 36 * section
        for step in range(NUM_STEPS):
            yield start + 2 * (step + 1), step_event(section, step, is_inverted=is_inverted)
        yield start + 36, section_event(section)
    yield 172.5, FileEvent(path=Path("out.mp4"))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pace_counts_decoding_per_frame_but_not_per_step_and_loading_never() -> None:
    clock = Clock()
    pace = Pace(clock)
    readings = []
    for clock.now, event in job():
        if (reading := pace.on_event(event)) is not None:
            readings.append(reading)
    assert [reading.seconds_per_step for reading in readings] == pytest.approx([2.0] * 8)
    # First section: 8 s of steps for 36 frames. Last step: 36 s + 8 s for 72 frames.
    assert readings[3].seconds_per_frame == pytest.approx(8 / 36)
    assert readings[3].seconds_left == pytest.approx(8)
    assert readings[-1].seconds_per_frame == pytest.approx(44 / 72)
    assert readings[-1].seconds_left == 0


@pytest.mark.parametrize(
    ("first_latent_frame", "window", "span"),
    [(1, 9, (1, 37)), (10, 9, (37, 73)), (1, 5, (1, 21))],
)
def test_video_span_follows_the_latent_frames(
    first_latent_frame: int, window: int, span: tuple[int, int]
) -> None:
    event = StepEvent(
        section=0, num_sections=1, step=0, num_steps=1, is_computed=True,
        first_latent_frame=first_latent_frame, x0=torch.zeros(1, 16, window, 2, 2),
    )  # fmt: skip
    assert video_span(event, fps=30) == pytest.approx((span[0] / 30, span[1] / 30))


def report_lines(*, is_inverted: bool) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    reporter = LineReporter(Console(file=stream, width=200), 30, lambda: Pace(clock))
    with reporter:
        reporter.on_event(PhaseEvent(phase="load"))
        for clock.now, event in job(is_inverted=is_inverted):
            reporter.on_event(event)
    return stream.getvalue().splitlines()


def test_lines_are_one_per_section() -> None:
    assert report_lines(is_inverted=True) == [
        "loading the model",
        "denoising",
        "2 sections, inverted order: the end of the video comes first",
        "section 1/2 (video 1.2-2.4 s) step 4/4  2 s/it  0.222 s/frame  ETA 0:08",
        "section 2/2 (video 0.0-1.2 s) step 4/4  2 s/it  0.611 s/frame  ETA 0:00",
    ]


def test_forward_order_says_so() -> None:
    lines = report_lines(is_inverted=False)
    assert lines[2] == "2 sections, forward order: the start of the video comes first"
    assert lines[3].startswith("section 1/2 (video 0.0-1.2 s)")


@pytest.mark.parametrize("width", [60, 160])
def test_bar_shows_section_pace_and_remaining_time(width: int) -> None:
    stream = io.StringIO()
    with BarReporter(Console(file=stream, force_terminal=True, width=width), 30) as reporter:
        for _, event in job():
            reporter.on_event(event)
        reporter.on_event(step_event(1, 3))
    shown = stream.getvalue()
    assert "the end of the video comes first" in shown
    assert "section 2/2" in shown
    assert "s/frame" in shown
    assert "ETA" in shown


def test_json_leaves_tensors_out() -> None:
    stream = io.StringIO()
    reporter = JsonReporter(stream)
    for _, event in job():
        reporter.on_event(event)
    objects = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert objects[0] == {"event": "phase", "phase": "denoise"}
    assert set(objects[1]) == {
        "event", "section", "num_sections", "step", "num_steps", "is_computed", "first_latent_frame",
    }  # fmt: skip
    assert objects[-1] == {"event": "file", "path": "out.mp4"}


def test_no_bar_without_a_terminal() -> None:
    assert isinstance(make_reporter(fps=30, is_json=False, is_quiet=False), LineReporter)
    assert isinstance(make_reporter(fps=30, is_json=True, is_quiet=True), JsonReporter)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
