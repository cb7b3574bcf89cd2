"""Latent frames that a job holds in RAM for its sections to come, where they are no published straight line. Integers only."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from .config import UNTRAINED_ORDERS, SamplingConfig
from .sections import SectionPlan, plan_sections


def most_held_frames(sampling: SamplingConfig, *, num_given: int = 1, is_decoded: bool = True) -> int:
    """Most latent frames that are held at once; 0 for a published layout, whose history never grows.

    Args:
        sampling: of the job.
        num_given: latent frames that are there before the first section.
        is_decoded: sections that are made ahead also wait for the decoder.
    """
    is_ordered = sampling.order in UNTRAINED_ORDERS
    if sampling.untrained_schedule is None and not is_ordered:
        return 0
    plans, window = plan_sections(sampling), sampling.latent_window_size
    waiting = _waiting_sections(plans) if is_decoded and is_ordered else [0] * len(plans)
    return num_given + max(
        # What a section sees is gathered beside the history, and still there when its own frames come in.
        kept + _num_seen(plan) + window * (1 + num_waiting)
        for plan, kept, num_waiting in zip(plans, kept_frames(plans), waiting, strict=True)
    )


def kept_frames(plans: Sequence[SectionPlan]) -> list[int]:
    """How many frames of earlier sections are kept while each one is made; ``plans`` are in generation order."""
    last_use: dict[int | None, int] = {}
    for plan in plans:
        for places in _groups(plan):
            last_use |= dict.fromkeys(places, plan.index)
    changes = [0] * (len(plans) + 1)
    for plan in plans:
        for place in range(plan.first_latent_frame, plan.first_latent_frame + len(plan.latent_indices)):
            last = last_use.get(place, -1)
            if last > plan.index:
                changes[plan.index + 1] += 1
                changes[last + 1] -= 1
    return list(accumulate(changes))[:-1]


def _groups(plan: SectionPlan) -> tuple[Sequence[int | None], ...]:
    """Frames that a section sees, not the means of those beyond."""
    if plan.seen is not None:
        return tuple(level.frames for level in plan.seen.levels)
    return tuple(group or () for group in (plan.clean_frames, plan.clean_2x_frames, plan.clean_4x_frames))


def _num_seen(plan: SectionPlan) -> int:
    return sum(len(group) for group in _groups(plan))


def _waiting_sections(plans: Sequence[SectionPlan]) -> Iterator[int]:
    """Sections that wait with each one for those before them in the video, itself included."""
    waiting: set[int] = set()
    next_place = 0
    for plan in plans:
        waiting.add(plan.place)
        yield len(waiting)
        while next_place in waiting:
            waiting.remove(next_place)
            next_place += 1
