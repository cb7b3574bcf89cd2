"""The generated latents that later sections attend to: never more than 19 latent frames.

The latents that later sections attend to, for orders that are not a straight line.

The latents that later sections attend to under a packing schedule, and the means of those beyond.

Finished sections of a job that was stopped, from which sampling goes on.

What the sections of one job see of each other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..families.framepack.packing import CleanLatents, ContextGroup
from ..model.conditioning import Conditioning
from ..request.config import UNTRAINED_ORDERS, SamplingConfig
from ..request.sections import NUM_CLEAN_1X, NUM_CLEAN_2X, NUM_CLEAN_4X, NUM_HISTORY, SectionPlan
from ..request.seen import SeenLevel, SeenTail
from .codebook import Codebook


class History:
    """History of one job; slots that no section has filled are zero, and attended to."""

    def __init__(self, start_latent: Tensor, order: str) -> None:
        """Start from ``start_latent`` [1, C, 1, Y, X]; ``order`` is "inverted" or "forward"."""
        self.start_latent = start_latent
        self.order = order
        batch, channels, _, height, width = start_latent.shape
        self.latents = start_latent.new_zeros((batch, channels, NUM_HISTORY, height, width))
        if order == "forward":
            self.append(start_latent)

    def append(self, latents: Tensor) -> None:
        """Add a finished section [1, C, T, Y, X]: in front in inverted order, else at the end."""
        if self.order == "inverted":
            self.latents = torch.cat((latents, self.latents), dim=2)[:, :, :NUM_HISTORY]
        else:
            self.latents = torch.cat((self.latents, latents), dim=2)[:, :, -NUM_HISTORY:]

    def clean_latents(self) -> CleanLatents:
        """Context of the next section. Nearest frames are densest; inside a group time runs forward."""
        if self.order == "inverted":
            near, mid, far = self.latents.split((NUM_CLEAN_1X, NUM_CLEAN_2X, NUM_CLEAN_4X), dim=2)
        else:
            far, mid, near = self.latents.split((NUM_CLEAN_4X, NUM_CLEAN_2X, NUM_CLEAN_1X), dim=2)
        return CleanLatents(torch.cat((self.start_latent, near), dim=2), mid, far)


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


class ScheduledHistory:
    """History of one job; what no later section needs is dropped.

    Attributes:
        frames: [C, Y, X] each, by latent frame.
        means: [C] fp64 each, by latent frame: those that a tail may see.
    """

    def __init__(
        self,
        start_latent: Tensor,
        plans: Sequence[SectionPlan],
        given: Mapping[int, Tensor] | None = None,
        passing: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Begin with ``start_latent`` [1, C, 1, Y, X].

        Args:
            start_latent: of the start image.
            plans: all sections in generation order; each has ``seen``.
            given: [C, Y, X] by latent frame: what was there before the first section.
            passing: likewise, for the first section alone.
        """
        self._start = start_latent[0, :, 0]
        self._empty = torch.zeros_like(self._start)
        self._passing = dict(passing or {})
        self._tails = _TailReach(plans)
        self._last_use: dict[int, int] = {}
        for plan in plans:
            assert plan.seen is not None
            self._last_use |= dict.fromkeys(plan.seen.frames(), plan.index)
        self.frames = {0: self._start} | dict(given or {})
        self.means = {place: _mean(frame) for place, frame in self.frames.items()}
        self._folded, self._num_folded = torch.zeros_like(self._start[:, 0, 0], dtype=torch.float64), 0
        self._forget(-1)

    def append(self, plan: SectionPlan, latents: Tensor) -> None:
        """Add the finished section of ``plan``, [1, C, T, Y, X]."""
        # A view of a frame that is kept would keep the whole section.
        made = {plan.first_latent_frame + i: latents[0, :, i].clone() for i in range(latents.shape[2])}
        self.frames |= made
        self.means |= {place: _mean(frame) for place, frame in made.items()}
        self._forget(plan.index)

    def groups(self, plan: SectionPlan, guide: Tensor | None = None) -> list[ContextGroup]:
        """What the section of ``plan`` sees, as it is packed: the tail, then the levels, the coarsest first.

        A ``guide`` [1, C, 1, Y, X] takes the place of the start latent.
        """
        assert plan.seen is not None
        tail = [] if plan.seen.tail is None else [self._tail_group(plan.seen.tail)]
        levels = sorted(plan.seen.levels, key=lambda level: -level.kernel)
        return tail + [self._level_group(level, plan.index, guide) for level in levels]

    def _level_group(self, level: SeenLevel, index: int, guide: Tensor | None) -> ContextGroup:
        found = [self._frame(frame, index) for frame in level.frames]
        if level.is_start:
            found[0] = self._start if guide is None else guide[0, :, 0]
        return ContextGroup(level.kernel, torch.stack(found, dim=1)[None], level.indices)

    def _frame(self, place: int, index: int) -> Tensor:
        if index == 0 and place in self._passing:
            return self._passing[place]
        return self.frames.get(place, self._empty)

    def _tail_group(self, tail: SeenTail) -> ContextGroup:
        seen = [self.means[place] for place in tail.frames if place in self.means]
        if tail.kind == "tc":
            total = torch.stack([self._folded, *seen]).sum(dim=0)
            seen = [total / max(self._num_folded + len(seen), 1)]
        means = torch.stack(seen, dim=1)[None, :, :, None, None]
        return ContextGroup(tail.kernel, means.to(self._start.dtype), tail.indices, is_tail=True)

    def _forget(self, index: int) -> None:
        """Drop what no section after ``index`` needs; add up the means that all of those need."""
        self.frames = {
            place: frame for place, frame in self.frames.items() if self._last_use.get(place, -1) > index
        }
        folded, kept = self._tails.after(index)
        for place in sorted(place for place in self.means if place in folded):
            self._folded = self._folded + self.means.pop(place)
            self._num_folded += 1
        self.means = {place: mean for place, mean in self.means.items() if place in kept}


class _TailReach:
    """Which frames the tails of the sections to come see."""

    def __init__(self, plans: Sequence[SectionPlan]) -> None:
        tails = [
            range(0) if plan.seen is None or plan.seen.tail is None else plan.seen.tail.frames
            for plan in plans
        ]
        kinds = {
            plan.seen.tail.kind for plan in plans if plan.seen is not None and plan.seen.tail is not None
        }
        self._is_total = kinds == {"tc"}
        # By the number of sections that are finished.
        self._common = [range(0)] * (len(tails) + 1)
        self._reach = [range(0)] * (len(tails) + 1)
        for i in reversed(range(len(tails))):
            is_last = i == len(tails) - 1
            self._common[i] = tails[i] if is_last else _common(tails[i], self._common[i + 1])
            self._reach[i] = _hull(tails[i], self._reach[i + 1])

    def after(self, index: int) -> tuple[range, range]:
        """Frames of which one sum will do, and frames that are needed one by one, once section ``index`` is there."""
        folded = self._common[index + 1] if self._is_total else range(0)
        return folded, self._reach[index + 1]


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _hull(one: range, other: range) -> range:
    if not one or not other:
        return one or other
    return range(min(one.start, other.start), max(one.stop, other.stop))


def _mean(frame: Tensor) -> Tensor:
    """Mean [C] fp64 of a latent frame [C, Y, X]."""
    return frame.double().mean(dim=(1, 2))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledSections:
    """What the next section depends on.

    Attributes:
        num_sections: finished sections of the job.
        latents: the last of them in generation order, [1, C, window, Y, X] fp32 each: all, or 19 frames or more.
        generator_state: of the job's noise after the last of them, uint8; None where none is finished.
        known: sections that later ones see, each by its place in generation order, where the history is no straight line or
            a packing schedule says what is seen; ``latents`` is empty then. May be read from a disk one by one.
        next_seed: the next section is drawn from this seed instead; those after it continue the job's own sequence.
    """

    num_sections: int = 0
    latents: tuple[Tensor, ...] = ()
    generator_state: Tensor | None = None
    known: Iterable[tuple[int, Tensor]] = ()
    next_seed: int | None = None

    def history(self, start_latent: Tensor, order: str, beyond: Tensor | None = None) -> History:
        """The history of the next section; latents ``beyond`` all of them were there before the first."""
        history = History(start_latent, order)
        if beyond is not None:
            history.append(beyond)
        for latents in self.latents:
            history.append(latents)
        return history


def num_history_sections(window: int) -> int:
    """Sections of ``window`` latent frames that the next one attends to."""
    return -(-NUM_HISTORY // window)


class JobNoise:
    """One stream of noise for the whole job: a section's noise depends on how many came before it."""

    def __init__(self, seed: int, shape: tuple[int, ...], resume: SampledSections) -> None:
        """Noise of ``shape``, from the start of ``seed``'s sequence or from where ``resume`` left it."""
        self._shape = shape
        self._next_seed = resume.next_seed
        self._generator = torch.Generator("cpu").manual_seed(seed)
        if resume.generator_state is not None:
            self._generator.set_state(resume.generator_state)

    def draw(self) -> Tensor:
        """Noise of the next section, fp32 on the CPU."""
        # Another engine of the process may be loading a model, which changes the default dtype.
        noise = torch.randn(self._shape, generator=self._generator, dtype=torch.float32)
        if self._next_seed is not None:
            # A section that is made again takes its place in the sequence, so that those after it keep theirs.
            own = torch.Generator("cpu").manual_seed(self._next_seed)
            noise = torch.randn(self._shape, generator=own, dtype=torch.float32)
            self._next_seed = None
        return noise

    def state(self) -> Tensor:
        """Where the sequence stands, uint8."""
        return self._generator.get_state()


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
