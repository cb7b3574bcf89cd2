"""What the sections of one job see of each other."""

from collections.abc import Sequence

from torch import Tensor

from .codebook import Codebook
from .conditioning import Conditioning
from .config import UNTRAINED_ORDERS, SamplingConfig
from .history import CleanLatents, History
from .known_frames import KnownFrames
from .sampled_sections import SampledSections
from .scheduled_history import ContextGroup, ScheduledHistory
from .sections import NUM_HISTORY, SectionPlan

SeenLatents = CleanLatents | list[ContextGroup]


class JobHistory:
    """The history of a job in any order and schedule, from what is given and what is finished."""

    def __init__(
        self,
        conditioning: Conditioning,
        sampling: SamplingConfig,
        plans: Sequence[SectionPlan],
        resume: SampledSections,
    ) -> None:
        """Kept on the CPU, wherever the conditioning was computed."""
        self._start = conditioning.start_latent.float().cpu()
        given, self._end = (
            None if latents is None else latents.float().cpu()
            for latents in (conditioning.given_latents, conditioning.end_latent)
        )
        self._is_end_kept = sampling.end_image_use == "history"
        self._beyond = self._end if self._is_end_kept else given
        self._resume = resume
        self._order = sampling.order
        path = sampling.history_codebook
        self._codebook = None if path is None else Codebook.load(path)
        self._straight: History | None = None
        self._known: KnownFrames | ScheduledHistory | None = None
        if sampling.untrained_schedule is not None:
            self._known = self._scheduled(plans)
        elif sampling.order in UNTRAINED_ORDERS:
            self._known = KnownFrames(self._start, plans)
        else:
            self._straight = resume.history(self._start, sampling.order, self._beyond)
        for index, latents in resume.known:
            self.append(plans[index], latents)

    def append(self, section: SectionPlan, latents: Tensor) -> None:
        """Add a finished section."""
        if self._straight is not None:
            self._straight.append(latents)
        elif isinstance(self._known, ScheduledHistory):
            self._known.append(section, self._snapped(latents))
        else:
            assert self._known is not None
            self._known.append(section, latents)

    def seen(self, section: SectionPlan, guide: Tensor | None = None) -> SeenLatents:
        """What ``section`` is made from; a ``guide`` [1, C, 1, Y, X] takes the place of the start latent."""
        if isinstance(self._known, ScheduledHistory):
            return self._known.groups(section, guide)
        clean = self._clean(section) if guide is None else self._clean(section).anchored(guide)
        return clean if self._codebook is None else self._codebook.discretise(clean)

    def _clean(self, section: SectionPlan) -> CleanLatents:
        if self._known is not None:
            assert isinstance(self._known, KnownFrames)
            return self._known.clean_latents(section)
        assert self._straight is not None
        if section.index == 0 and self._end is not None and not self._is_end_kept:
            return self._resume.history(self._start, self._order, self._end).clean_latents()
        return self._straight.clean_latents()

    def _scheduled(self, plans: Sequence[SectionPlan]) -> ScheduledHistory:
        """What is given lies before the first section in forward order, else behind the last one.

        As in the published layouts a codebook moves the start image where it is history, not where it is the start.
        """
        given = first = self._frames(self._start, 0)
        if self._beyond is not None and self._order == "forward":
            num_given = self._beyond.shape[2]
            given = first | self._frames(self._beyond, 1 - num_given)
            # Of a longer video only the end is given: its first frame lies further away than anybody knows.
            if num_given < NUM_HISTORY:
                given[-num_given] = first[0]
        end = max(plan.first_latent_frame + len(plan.latent_indices) for plan in plans)
        if self._beyond is not None and self._order != "forward":
            given = first | self._frames(self._beyond, end)
        passing = {} if self._end is None or self._is_end_kept else self._frames(self._end, end)
        return ScheduledHistory(self._start, plans, given, passing)

    def _frames(self, latents: Tensor, first: int) -> dict[int, Tensor]:
        snapped = self._snapped(latents)
        return {first + i: snapped[0, :, i] for i in range(snapped.shape[2])}

    def _snapped(self, latents: Tensor) -> Tensor:
        return latents if self._codebook is None else self._codebook.snap(latents)
