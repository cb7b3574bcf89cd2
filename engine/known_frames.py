"""The latents that later sections attend to, for orders that are not a straight line."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .history import CleanLatents
from .sections import SectionPlan


class KnownFrames:
    """Latent frames by their place in the video; each goes when no later section needs it.

    Attributes:
        frames: [C, Y, X] each, by latent frame; 0 is the start latent.
    """

    def __init__(self, start_latent: Tensor, plans: Sequence[SectionPlan]) -> None:
        """Begin with ``start_latent`` [1, C, 1, Y, X]; ``plans`` are all sections in generation order."""
        self.frames = {0: start_latent[0, :, 0]}
        self._last_use: dict[int, int] = {}
        for plan in plans:
            self._last_use |= dict.fromkeys(sources_of(plan), plan.index)

    def append(self, plan: SectionPlan, latents: Tensor) -> None:
        """Add the finished section of ``plan``, [1, C, T, Y, X]."""
        places = range(plan.first_latent_frame, plan.first_latent_frame + latents.shape[2])
        # A view of a frame that is kept would keep the whole section.
        self.frames |= {place: latents[0, :, i].clone() for i, place in enumerate(places)}
        self.frames = {
            place: frame for place, frame in self.frames.items() if self._last_use.get(place, 0) > plan.index
        }

    def clean_latents(self, plan: SectionPlan) -> CleanLatents:
        """What the section of ``plan`` sees; frames that are not there are zero."""
        assert plan.clean_frames is not None
        assert plan.clean_2x_frames is not None
        assert plan.clean_4x_frames is not None
        return CleanLatents(
            self._gather(plan.clean_frames),
            self._gather(plan.clean_2x_frames),
            self._gather(plan.clean_4x_frames),
        )

    def _gather(self, places: Sequence[int | None]) -> Tensor:
        empty = torch.zeros_like(next(iter(self.frames.values())))
        found = [empty if place is None else self.frames[place] for place in places]
        return torch.stack(found, dim=1)[None]


def sources_of(plan: SectionPlan) -> set[int]:
    """The latent frames that a section sees."""
    if plan.seen is not None:
        return {*plan.seen.frames(), *(() if plan.seen.tail is None else plan.seen.tail.frames)}
    groups = (plan.clean_frames, plan.clean_2x_frames, plan.clean_4x_frames)
    return {place for group in groups for place in group or () if place is not None}


def needed_sections(plans: Sequence[SectionPlan], num_finished: int) -> list[int]:
    """Of the first ``num_finished`` sections in generation order those that later ones see."""
    if any(
        plan.seen is not None and plan.seen.tail is not None and plan.seen.tail.kind == "tc" for plan in plans
    ):
        # One mean of all: it is added up in the order in which they were made.
        return list(range(num_finished)) if num_finished < len(plans) else []
    sources = {place for plan in plans[num_finished:] for place in sources_of(plan)}
    return [
        plan.index
        for plan in plans[:num_finished]
        if sources.intersection(
            range(plan.first_latent_frame, plan.first_latent_frame + len(plan.latent_indices))
        )
    ]
