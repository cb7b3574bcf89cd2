"""How fast a job runs and when it will be done."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from .events import Event, PhaseEvent, SectionEvent, StepEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The pace so far.

    Attributes:
        seconds_per_step: mean over the steps of this section so far.
        seconds_per_frame: denoising and decoding of a whole section, per frame of video; None until a section was
            decoded. The first section has no neighbour to decode again, so later figures are a little higher.
        seconds_left: expected until the end; without the decoding until a section was decoded.
    """

    seconds_per_step: float
    seconds_per_frame: float | None
    seconds_left: float


class Pace:
    """Measures a job by its events.

    All steps are averaged. Of the decodes the last one counts: all but the first take the same time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._section_start = self._last_step_end = clock()
        self._denoise_seconds = self._decode_seconds = 0.0
        self._num_steps = self._num_sections = 0
        self._last_step: StepEvent | None = None

    def on_event(self, event: Event) -> Reading | None:
        """Take an event in; a step and the end of a section give a reading."""
        now = self._clock()
        if isinstance(event, StepEvent):
            started = self._section_start if event.step == 0 else self._last_step_end
            self._denoise_seconds += now - started
            self._num_steps += 1
            self._last_step, self._last_step_end = event, now
            return self._read(event, is_decoded=False)
        if isinstance(event, PhaseEvent) and event.phase == "denoise":
            self._section_start = now
        if isinstance(event, SectionEvent) and self._last_step is not None:
            self._decode_seconds = now - self._last_step_end
            self._num_sections += 1
            reading = self._read(self._last_step, is_decoded=True)
            self._section_start = now
            return reading
        return None

    def _read(self, event: StepEvent, *, is_decoded: bool) -> Reading:
        step = self._denoise_seconds / self._num_steps
        # A resumed job has sections that were not measured.
        num_sections_left = event.num_sections - event.section
        num_steps_left = num_sections_left * event.num_steps - (event.step + 1)
        num_decodes_left = num_sections_left - int(is_decoded)
        section = event.num_steps * step + self._decode_seconds
        return Reading(
            seconds_per_step=(self._last_step_end - self._section_start) / (event.step + 1),
            seconds_per_frame=section / section_frames(event) if self._num_sections else None,
            seconds_left=num_steps_left * step + num_decodes_left * self._decode_seconds,
        )


def section_frames(event: StepEvent) -> int:
    """Frames of video that one section adds."""
    return 4 * event.x0.shape[2]


def video_span(event: StepEvent, fps: float) -> tuple[float, float]:
    """Start and end, in seconds of video, of the section that ``event`` belongs to."""
    # Latent frame k > 0 decodes to frames 4k - 3 to 4k; frame 0 is the start image.
    first_frame = 4 * event.first_latent_frame - 3
    return first_frame / fps, (first_frame + section_frames(event)) / fps
