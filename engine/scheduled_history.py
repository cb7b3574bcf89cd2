"""The latents that later sections attend to under a packing schedule, and the means of those beyond."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .sections import SectionPlan
from .seen_frames import SeenLevel, SeenTail


@dataclass(frozen=True, slots=True)
class ContextGroup:
    """Latents that are packed alike.

    Attributes:
        kernel: 1, 2, 4 or 8: frames in one token.
        latents: [1, C, T, Y, X]; of a tail [1, C, T, 1, 1], where T is 1 for a mean of all frames.
        indices: positions of the frames.
        is_tail: the latents are means of whole pictures.
    """

    kernel: int
    latents: Tensor
    indices: range
    is_tail: bool = False


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
