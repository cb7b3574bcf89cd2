"""How fast a job runs and when it will be done."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..events import Event, PhaseEvent, SectionEvent, StepEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The pace after one step.

    Attributes:
        seconds_per_step: mean over the steps of this section so far.
        seconds_per_frame: all time since denoising began (decoding included) per frame of video.
        seconds_left: expected until the last step.
    """

    seconds_per_step: float
    seconds_per_frame: float
    seconds_left: float


class Pace:
    """Measures a job by its events."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = self._section_start = clock()
        self._has_steps = False

    def on_event(self, event: Event) -> Reading | None:
        """Take an event in; a step gives a reading."""
        if isinstance(event, StepEvent):
            self._has_steps = True
            return self._read(event)
        if isinstance(event, PhaseEvent | SectionEvent):
            self._section_start = self._clock()
            if not self._has_steps:
                self._start = self._section_start
        return None

    def _read(self, event: StepEvent) -> Reading:
        now = self._clock()
        num_done = event.section + (event.step + 1) / event.num_steps
        elapsed = now - self._start
        return Reading(
            seconds_per_step=(now - self._section_start) / (event.step + 1),
            seconds_per_frame=elapsed / (num_done * section_frames(event)),
            seconds_left=elapsed / num_done * (event.num_sections - num_done),
        )


def section_frames(event: StepEvent) -> int:
    """Frames of video that one section adds."""
    return 4 * event.x0.shape[2]


def video_span(event: StepEvent, fps: float) -> tuple[float, float]:
    """Start and end, in seconds of video, of the section that ``event`` belongs to."""
    # Latent frame k > 0 decodes to frames 4k - 3 to 4k; frame 0 is the start image.
    first_frame = 4 * event.first_latent_frame - 3
    return first_frame / fps, (first_frame + section_frames(event)) / fps
