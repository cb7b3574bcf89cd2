"""What the sections of a job see of each other: the latents that later ones attend to, and the means of those beyond."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.conditioning import Conditioning
from ..model.packing import ContextGroup
from ..request.config import SamplingConfig
from ..request.sections import NUM_HISTORY, SectionPlan
from ..request.seen import SeenLevel, SeenTail, positions
from .codebook import Codebook


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledSections:
    """Finished sections of a job that was stopped, from which sampling goes on.

    Attributes:
        num_sections: finished sections of the job.
        latents: those that later ones see, [1, C, window, Y, X] fp32, each with its place in generation order and in this
            order; see :func:`needed_sections`. May be read from a disk one by one.
        generator_state: of the job's noise after the last of them, uint8; None where none is finished.
        next_seed: the next section is drawn from this seed instead; those after it continue the job's own sequence.
    """

    num_sections: int = 0
    latents: Iterable[tuple[int, Tensor]] = ()
    generator_state: Tensor | None = None
    next_seed: int | None = None


def needed_sections(plans: Sequence[SectionPlan], num_finished: int) -> list[int]:
    """Those of the first ``num_finished`` sections (generation order) whose latents later sections still need."""
    if any(plan.seen.tail is not None and plan.seen.tail.kind == "tc" for plan in plans):
        # One mean of all: it is added up in the order in which they were made.
        return list(range(num_finished)) if num_finished < len(plans) else []
    sources = {frame for plan in plans[num_finished:] for frame in plan.seen.sources()}
    return [plan.index for plan in plans[:num_finished] if sources.intersection(plan.frames)]


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


class History:
    """Latent frames of one job by their place in the video; what no later section needs is dropped.

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
        codebook: Codebook | None = None,
    ) -> None:
        """Begin with ``start_latent`` [1, C, 1, Y, X].

        Args:
            start_latent: of the start image.
            plans: all sections in generation order.
            given: [C, Y, X] by latent frame: what was there before the first section, in place of the start latent where
                it names frame 0.
            passing: the same, seen by the first section alone.
            codebook: moves every frame that is seen as history; None leaves them as they are.
        """
        self._start = start_latent[0, :, 0]
        self._empty = torch.zeros_like(self._start)
        self._codebook = codebook
        self._tails = _TailReach(plans)
        self._last_use: dict[int, int] = {}
        for plan in plans:
            self._last_use |= dict.fromkeys(plan.seen.frames(), plan.index)
        self._passing = self._snapped(passing or {})
        there = {0, *(given or ()), *(frame for plan in plans for frame in plan.frames)}
        # Frames that never come are held, empty, until nobody sees them: memory is the same from the first section on.
        self._absent = {
            place: torch.zeros_like(self._start) for place in self._last_use if place not in there
        }
        self.frames: dict[int, Tensor] = {}
        self.means: dict[int, Tensor] = {}
        self._folded, self._num_folded = torch.zeros_like(self._start[:, 0, 0], dtype=torch.float64), 0
        self._add({0: self._start} | dict(given or {}), -1)

    @classmethod
    def of_job(
        cls,
        conditioning: Conditioning,
        sampling: SamplingConfig,
        plans: Sequence[SectionPlan],
        resume: SampledSections,
    ) -> "History":
        """The history of a job, from what is given and what is finished; on the CPU, wherever that was computed.

        What is given lies before the first section in forward order, else behind the last one.
        """
        start, beyond, end = (
            None if latents is None else latents.float().cpu()
            for latents in (conditioning.start_latent, conditioning.given_latents, conditioning.end_latent)
        )
        assert start is not None
        is_end_kept = sampling.end_image_use == "history"
        if is_end_kept:
            beyond = end
        last = max(plan.frames.stop for plan in plans)
        given: dict[int, Tensor] = {}
        if beyond is not None and sampling.order == "forward":
            num_given = beyond.shape[2]
            given = _by_place(beyond, 1 - num_given)
            # Of a longer video only the end is given: its first frame lies further away than anybody knows.
            if num_given < NUM_HISTORY:
                given[-num_given] = start[0, :, 0]
        elif beyond is not None:
            given = _by_place(beyond, last)
        passing = {} if end is None or is_end_kept else _by_place(end, last)
        path = sampling.history_codebook
        codebook = None if path is None else Codebook.load(path)
        history = cls(start, plans, given, passing, codebook)
        for index, latents in resume.latents:
            history.append(plans[index], latents)
        return history

    def append(self, plan: SectionPlan, latents: Tensor) -> None:
        """Add the finished section of ``plan``, [1, C, T, Y, X]."""
        # A view of a frame that is kept would keep the whole section.
        made = {place: frame.clone() for place, frame in _by_place(latents, plan.first_latent_frame).items()}
        self._add(made, plan.index)

    def groups(self, plan: SectionPlan, guide: Tensor | None = None) -> list[ContextGroup]:
        """What the section of ``plan`` sees, as it is packed: the tail, then the levels, the coarsest first.

        A ``guide`` [1, C, 1, Y, X] takes the place of the start latent.
        """
        tail = [] if plan.seen.tail is None else [self._tail_group(plan.seen.tail)]
        return tail + [self._group(levels, plan.index, guide) for levels in plan.seen.groups()]

    def _group(self, levels: Sequence[SeenLevel], index: int, guide: Tensor | None) -> ContextGroup:
        found: list[Tensor] = []
        for level in levels:
            frames = [self._frame(frame, index) for frame in level.frames]
            if level.is_start:
                frames[0] = self._start if guide is None else guide[0, :, 0]
            found += frames
        return ContextGroup(levels[0].kernel, torch.stack(found, dim=1)[None], positions(levels))

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
        return ContextGroup(tail.kernel, means.to(self._start.dtype), tuple(tail.indices), is_tail=True)

    def _add(self, frames: Mapping[int, Tensor], index: int) -> None:
        """Take ``frames``; drop what no section after ``index`` needs; add up the means that all of those need."""
        frames = self._snapped(frames)
        self.frames = {
            place: frame
            for place, frame in (self.frames | frames).items()
            if self._last_use.get(place, -1) > index
        }
        self._absent = {
            place: frame for place, frame in self._absent.items() if self._last_use[place] > index
        }
        folded, kept = self._tails.after(index)
        means = self.means | {
            place: frame.double().mean(dim=(1, 2))
            for place, frame in frames.items()
            if place in folded or place in kept
        }
        for place in sorted(place for place in means if place in folded):
            self._folded = self._folded + means.pop(place)
            self._num_folded += 1
        self.means = {place: mean for place, mean in means.items() if place in kept}

    def _snapped(self, frames: Mapping[int, Tensor]) -> dict[int, Tensor]:
        if self._codebook is None or not frames:
            return dict(frames)
        snapped = self._codebook.snap(torch.stack(list(frames.values()), dim=1)[None])
        # Each a copy: a view of a frame that is kept would keep all of them.
        return {place: snapped[0, :, i].clone() for i, place in enumerate(frames)}


def _by_place(latents: Tensor, first: int) -> dict[int, Tensor]:
    """Frames [C, Y, X] of ``latents`` [1, C, T, Y, X] by latent frame of the video."""
    return {first + i: latents[0, :, i] for i in range(latents.shape[2])}


class _TailReach:
    """Which frames the tails of the sections to come see."""

    def __init__(self, plans: Sequence[SectionPlan]) -> None:
        tails = [plan.seen.tail for plan in plans]
        self._is_total = {tail.kind for tail in tails if tail is not None} == {"tc"}
        # By the number of sections that are finished.
        self._common = [range(0)] * (len(tails) + 1)
        self._reach = [range(0)] * (len(tails) + 1)
        for i, tail in reversed(list(enumerate(tails))):
            frames = range(0) if tail is None else tail.frames
            is_last = i == len(tails) - 1
            self._common[i] = frames if is_last else _common(frames, self._common[i + 1])
            self._reach[i] = _hull(frames, self._reach[i + 1])

    def after(self, index: int) -> tuple[range, range]:
        """What tails need once section ``index`` is made: frames of which a sum will do, and those needed one by one."""
        folded = self._common[index + 1] if self._is_total else range(0)
        return folded, self._reach[index + 1]


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _hull(one: range, other: range) -> range:
    if not one or not other:
        return one or other
    return range(min(one.start, other.start), max(one.stop, other.stop))
