"""Which sections make a video, in which order, and at which frame positions. Integers only."""

import itertools
from dataclasses import dataclass

from .config import UNTRAINED_ORDERS, SamplingConfig
from .seen_frames import SeenFrames

# Latent frames that enter at full, half and quarter resolution, nearest first; the start latent is extra.
NUM_CLEAN_1X, NUM_CLEAN_2X, NUM_CLEAN_4X = 1, 2, 16
NUM_HISTORY = NUM_CLEAN_1X + NUM_CLEAN_2X + NUM_CLEAN_4X
# Of a video that is extended, those that the history is made of.
MAX_CLIP_FRAMES = 4 * NUM_HISTORY + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionPlan:
    """One section of a job.

    Attributes:
        index: position in generation order, from 0.
        first_latent_frame: position in the video; the start latent is 0.
        latent_padding: whole windows between the start frame and the section as the model sees them.
        latent_indices: frame positions of the noisy latents, fed to the rotary embedding.
        clean_indices: of the start latent and of the nearest history frame.
        clean_2x_indices: of the history at half resolution.
        clean_4x_indices: of the history at quarter resolution.
        clean_frames: latent frames of the video that ``clean_indices`` stand for, 0 the start latent, None zeros; like the
            next two only where the history is no straight line (:mod:`~isoframe.engine.orders`).
        clean_2x_frames: of ``clean_2x_indices``.
        clean_4x_frames: of ``clean_4x_indices``.
        seen: what the section sees where a packing schedule says so; the fields of clean frames are empty then.
    """

    index: int
    first_latent_frame: int
    latent_padding: int
    latent_indices: range
    clean_indices: tuple[int, ...]
    clean_2x_indices: range
    clean_4x_indices: range
    clean_frames: tuple[int | None, ...] | None = None
    clean_2x_frames: tuple[int | None, ...] | None = None
    clean_4x_frames: tuple[int | None, ...] | None = None
    seen: SeenFrames | None = None

    @property
    def place(self) -> int:
        """Position in the video, in sections from 0."""
        return (self.first_latent_frame - 1) // len(self.latent_indices)


def published_paddings(num_sections: int) -> tuple[int, ...]:
    """Latent paddings of the inverted order: n-1 ... 0, shortened to 3, 2, ..., 2, 1, 0 past four sections."""
    if num_sections > 4:
        return (3, *(2,) * (num_sections - 3), 1, 0)
    return tuple(range(num_sections - 1, -1, -1))


def stretch_paddings(config: SamplingConfig) -> tuple[int, ...]:
    """Paddings to the image that each section begins with or follows: those of every stretch are the published ones."""
    borders = (0, *config.guide_places, config.num_sections)
    lengths = [end - first for first, end in itertools.pairwise(borders)]
    return tuple(itertools.chain.from_iterable(published_paddings(length) for length in reversed(lengths)))


def plan_sections(config: SamplingConfig) -> list[SectionPlan]:
    """The sections of a job in generation order."""
    # The modules that are imported below build on this one.
    schedule = config.untrained_schedule
    if schedule is not None:
        from .scheduled_sections import plan_scheduled

        return plan_scheduled(config, schedule)
    if config.order in UNTRAINED_ORDERS:
        from .orders import plan_between

        return plan_between(config)
    if config.order == "forward":
        return [_forward_section(i, config.latent_window_size) for i in range(config.num_sections)]
    if config.target_index is not None:
        return [_inverted_section(0, 1, 1, config.target_index - 1)]
    paddings = config.latent_paddings or stretch_paddings(config)
    return [
        _inverted_section(i, config.num_sections, config.latent_window_size, padding)
        for i, padding in enumerate(paddings)
    ]


def _inverted_section(index: int, num_sections: int, window: int, padding: int) -> SectionPlan:
    """Layout [start | padding | window | 1 | 2 | 16]: the history lies in the future."""
    first = 1 + padding * window
    end = first + window
    return SectionPlan(
        index=index,
        first_latent_frame=1 + (num_sections - 1 - index) * window,
        latent_padding=padding,
        latent_indices=range(first, end),
        clean_indices=(0, end),
        clean_2x_indices=range(end + NUM_CLEAN_1X, end + NUM_CLEAN_1X + NUM_CLEAN_2X),
        clean_4x_indices=range(end + NUM_CLEAN_1X + NUM_CLEAN_2X, end + NUM_HISTORY),
    )


def _forward_section(index: int, window: int) -> SectionPlan:
    """Layout [start | 16 | 2 | 1 | window], the same for every section."""
    end_4x = 1 + NUM_CLEAN_4X
    end_2x = end_4x + NUM_CLEAN_2X
    return SectionPlan(
        index=index,
        first_latent_frame=1 + index * window,
        latent_padding=0,
        latent_indices=range(end_2x + NUM_CLEAN_1X, end_2x + NUM_CLEAN_1X + window),
        clean_indices=(0, end_2x),
        clean_2x_indices=range(end_4x, end_2x),
        clean_4x_indices=range(1, end_4x),
    )
