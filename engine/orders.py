"""Orders in which sections lie between frames that are known on both sides. Integers only.

No published checkpoint was trained for them: a section sees its past in the layout of F1, or its future in the layout
of FramePackI2V where its past is not there yet, and one frame of what is known further ahead.
"""

import bisect
from collections.abc import Sequence

from .config import SamplingConfig
from .sections import NUM_CLEAN_1X, NUM_CLEAN_2X, NUM_CLEAN_4X, NUM_HISTORY, SectionPlan

# Sections between two that are planned ahead.
PLANNED_STRIDE = 4
# The published rule never shows a section further away than this many windows.
MAX_GAP = 3


def section_places(config: SamplingConfig) -> tuple[int, ...]:
    """Places in the video, from 0, in generation order.

    "endpoints": the last section, then the others from the start. "planned": every fourth section from the end towards
    the start, then those between them from the start. "custom": as the caller says.
    """
    last = config.num_sections - 1
    if config.order == "custom":
        assert config.section_order is not None, "the configuration was checked"
        return config.section_order
    stride = PLANNED_STRIDE if config.order == "planned" else config.num_sections
    ahead = tuple(range(last, 0, -stride)) or (last,)
    return (*ahead, *(place for place in range(config.num_sections) if place not in set(ahead)))


def plan_between(config: SamplingConfig) -> list[SectionPlan]:
    """The sections of a job in generation order, each with the frames that it sees."""
    known: list[int] = []
    sections = []
    for index, place in enumerate(section_places(config)):
        sections.append(_section(index, place, known, config.latent_window_size))
        bisect.insort(known, place)
    return sections


def _section(index: int, place: int, known: Sequence[int], window: int) -> SectionPlan:
    position = bisect.bisect(known, place)
    ahead = known[position] if position < len(known) else None
    if place == 0 or (position > 0 and known[position - 1] == place - 1):
        return _after_known(index, place, ahead, set(known), window)
    return _before_known(index, place, ahead, set(known), window)


def _after_known(index: int, place: int, ahead: int | None, known: set[int], window: int) -> SectionPlan:
    """Layout [start | 16 | 2 | 1 | window | gap | first frame ahead]."""
    first, end_4x = 1 + place * window, 1 + NUM_CLEAN_4X
    end_2x = end_4x + NUM_CLEAN_2X
    start = end_2x + NUM_CLEAN_1X
    past = _sources(range(first - NUM_HISTORY, first), known, window)
    clean_frames, clean_indices = [0, past[-1]], [0, end_2x]
    if ahead is not None:
        clean_frames.append(1 + ahead * window)
        clean_indices.append(start + window + _gap(place, ahead) * window)
    return SectionPlan(
        index=index,
        first_latent_frame=first,
        latent_padding=0,
        latent_indices=range(start, start + window),
        clean_indices=tuple(clean_indices),
        clean_2x_indices=range(end_4x, end_2x),
        clean_4x_indices=range(1, end_4x),
        clean_frames=tuple(clean_frames),
        clean_2x_frames=past[NUM_CLEAN_4X : NUM_CLEAN_4X + NUM_CLEAN_2X],
        clean_4x_frames=past[:NUM_CLEAN_4X],
    )


def _before_known(index: int, place: int, ahead: int | None, known: set[int], window: int) -> SectionPlan:
    """Layout [start | padding | window | gap | 1 | 2 | 16]; without anything ahead the history is empty."""
    padding = min(place, MAX_GAP)
    first = 1 + padding * window
    gap = 0 if ahead is None else _gap(place, ahead) * window
    near = first + window + gap
    future: tuple[int | None, ...] = (None,) * NUM_HISTORY
    if ahead is not None:
        start = 1 + ahead * window
        future = _sources(range(start, start + NUM_HISTORY), known, window)
    end_2x = near + NUM_CLEAN_1X + NUM_CLEAN_2X
    return SectionPlan(
        index=index,
        first_latent_frame=1 + place * window,
        latent_padding=padding,
        latent_indices=range(first, first + window),
        clean_indices=(0, near),
        clean_2x_indices=range(near + NUM_CLEAN_1X, end_2x),
        clean_4x_indices=range(end_2x, end_2x + NUM_CLEAN_4X),
        clean_frames=(0, future[0]),
        clean_2x_frames=future[NUM_CLEAN_1X : NUM_CLEAN_1X + NUM_CLEAN_2X],
        clean_4x_frames=future[NUM_CLEAN_1X + NUM_CLEAN_2X :],
    )


def _gap(place: int, ahead: int) -> int:
    return min(ahead - place - 1, MAX_GAP)


def _sources(frames: range, known: set[int], window: int) -> tuple[int | None, ...]:
    """The latent frames that are there, None for the others."""
    return tuple(
        frame if frame == 0 or (frame > 0 and (frame - 1) // window in known) else None for frame in frames
    )
