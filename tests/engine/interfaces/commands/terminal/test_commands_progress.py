"""What a user sees of a running job."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from isoframe.engine.events import Event, FileEvent, JobEvent, PhaseEvent, SectionEvent, StepEvent
from isoframe.engine.interfaces.commands.terminal.progress import (
    Reporter,
    describe,
    format_duration,
    print_json,
    reporting,
)
from isoframe.engine.jobs.log import Pace, Reading, video_span

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
    assert [reading.seconds_per_step for reading in readings] == pytest.approx([2.0] * 10)
    # Until a section was decoded there is no figure; from then on 8 s of steps and 28 s of decoding, at every step.
    assert [reading.seconds_per_frame for reading in readings] == [None] * 4 + [pytest.approx(1.0)] * 6
    # The steps alone at first; then what really comes.
    assert [reading.seconds_left for reading in readings] == pytest.approx(
        [14, 12, 10, 8, 36, 34, 32, 30, 28, 0]
    )


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
    reporter = Reporter(Console(file=stream, width=200), 30, lambda: Pace(clock))
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
        "section 1/2 (1.2-2.4 s) step 4/4  2 s/it  1 s/frame  ETA 0:36",
        "section 2/2 (0.0-1.2 s) step 4/4  2 s/it  1 s/frame  ETA 0:00",
    ]


def test_forward_order_says_so() -> None:
    lines = report_lines(is_inverted=False)
    assert lines[2] == "2 sections, forward order: the start of the video comes first"
    assert lines[3].startswith("section 1/2 (0.0-1.2 s)")


def test_progress_of_a_long_video_fits_80_columns() -> None:
    event = StepEvent(
        section=98, num_sections=100, step=24, num_steps=25, is_computed=True,
        first_latent_frame=10, x0=torch.zeros(1, 16, WINDOW, 2, 2),
    )  # fmt: skip
    for seconds_per_frame in (None, 12.34):
        reading = Reading(
            seconds_per_step=1234.5, seconds_per_frame=seconds_per_frame, seconds_left=3600 * 11
        )
        assert len(describe(event, reading, 30)) <= 80


def test_eta_without_a_decode_is_a_lower_bound() -> None:
    event = step_event(0, 0)
    early = Reading(seconds_per_step=2, seconds_per_frame=None, seconds_left=14)
    assert describe(event, early, 30).endswith("2 s/it  ETA >0:14")


def job_event(**changes: object) -> JobEvent:
    as_asked = JobEvent(
        order="inverted", num_sections=2, num_frames=73, fps=30, seconds=73 / 30, requested_seconds=2.4,
        height=64, width=64, image_height=64, image_width=64,
    )  # fmt: skip
    return dataclasses.replace(as_asked, **changes)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        (
            {"requested_seconds": 3.0},
            ["3.0 s asked for, 2.4 s are made: a video has whole sections of 1.2 s"],
        ),
        (
            {"image_height": 128, "image_width": 128},
            ["the image (128x128, height x width) is scaled to 64x64"],
        ),
        (
            {"image_height": 480, "image_width": 640},
            ["the image (480x640, height x width) is scaled and cropped to 64x64"],
        ),
    ],
)
def test_only_what_differs_from_the_request_is_said(changes: dict[str, object], lines: list[str]) -> None:
    stream = io.StringIO()
    for is_terminal in (False, True):
        console = Console(
            file=stream, width=200, force_terminal=is_terminal, color_system=None, highlight=False
        )
        with Reporter(console, 30) as running:
            running.on_event(job_event(**changes))
        assert [line for line in stream.getvalue().splitlines() if line] == lines
        stream.truncate(0)
        stream.seek(0)


@pytest.mark.parametrize("width", [60, 160])
def test_bar_shows_section_pace_and_remaining_time(width: int) -> None:
    stream = io.StringIO()
    with Reporter(Console(file=stream, force_terminal=True, width=width), 30) as reporter:
        for _, event in job():
            reporter.on_event(event)
        reporter.on_event(step_event(1, 3))
    shown = stream.getvalue()
    assert "the end of the video comes first" in shown
    assert "section 2/2" in shown
    assert "s/frame" in shown
    assert "ETA" in shown


def test_json_leaves_tensors_out(capsys: pytest.CaptureFixture[str]) -> None:
    for _, event in job():
        print_json(event)
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert objects[0] == {"event": "phase", "phase": "denoise"}
    assert set(objects[1]) == {
        "event", "section", "num_sections", "step", "num_steps", "is_computed", "first_latent_frame",
    }  # fmt: skip
    assert objects[-1] == {"event": "file", "path": "out.mp4"}


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for is_json in (False, True):
        with reporting(fps=30, is_json=is_json, is_quiet=is_json) as report:
            for _, event in job():
                report(event)
        shown[is_json] = capsys.readouterr()
    assert "section 2/2" in shown[False].err
    assert "\x1b" not in shown[False].err
    assert not shown[False].out
    assert shown[True].out.startswith('{"event": "phase"')
    assert not shown[True].err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_skipped_steps_are_counted_at_the_end() -> None:
    console = Console(file=io.StringIO(), width=100)
    with Reporter(console, 30) as reporter:
        for _, event in job():
            if isinstance(event, StepEvent):
                event = dataclasses.replace(event, is_computed=event.step != 2)
            reporter.on_event(event)
    assert console.file.getvalue().endswith("6 steps computed, 2 skipped by the step cache (approximate)\n")
