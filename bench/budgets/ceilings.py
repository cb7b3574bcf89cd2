"""Ceilings of memory by bisection: the least that is enough, and the most that fits; what fits is asked of a runner."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ...engine.errors import ConfigError
from ...engine.request.sizes import format_size
from ..records.rows import Basis
from .point import MemoryJob, Outcome, Runner

T = TypeVar("T")


def find_least(is_enough: Callable[[int], bool], *, low: int, high: int, step: int) -> int | None:
    """The least multiple of ``step`` above ``low`` that is enough; None if ``high`` is not.

    The result was asked for itself, and so was the multiple below it unless that is ``low``: both sides are evidence.

    Args:
        is_enough: asked about multiples of ``step``; what is more than enough is enough.
        low: known or taken to be too little; rounded down.
        high: rounded down.
        step: resolution.
    """
    below, above = low // step, high // step
    if above <= below or not is_enough(above * step):
        return None
    while above - below > 1:
        middle = (below + above) // 2
        if is_enough(middle * step):
            above = middle
        else:
            below = middle
    return above * step


def find_largest(fits: Callable[[T], bool], candidates: Sequence[T]) -> T | None:
    """The last of ``candidates`` that fits; None if the first does not.

    Args:
        fits: asked about candidates; what is before one that fits fits too.
        candidates: from the smallest to the largest.
    """
    if fits(candidates[-1]):
        return candidates[-1]
    too_many = find_least(lambda count: not fits(candidates[count - 1]), low=0, high=len(candidates), step=1)
    assert too_many is not None, "the last one does not fit"
    return candidates[too_many - 2] if too_many > 1 else None


MAX_WINDOW = 48
_MIB = 2**20
# Pictures of a quarter to three times the edges of the one that is asked for, in eighths.
_EIGHTHS = range(2, 25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Everything that :meth:`CeilingSearch.measure` found.

    Attributes:
        basis: how.
        job: the settings.
        into: bytes of the job's budget, which sizes and windows were fitted into.
        least: bytes of the smallest budget that finishes; None where the largest does not.
        most: bytes of the largest budget that was tried.
        size: largest (height, width) that fits into the budget, with the window of the job; None if none does.
        window: largest window that fits into it, with the size of the job; None if none does.
        curve: outcome by budget, smallest first.
        watched: the job at its budget, with time line and owners.
        num_points: points that were tried in all.
    """

    basis: Basis
    job: MemoryJob
    into: int
    least: int | None
    most: int
    size: tuple[int, int] | None
    window: int | None
    curve: tuple[tuple[int, Outcome], ...]
    watched: Outcome
    num_points: int


class CeilingSearch:
    """Finds the ceilings of one job; no point is tried twice."""

    def __init__(self, runner: Runner, job: MemoryJob, *, most: int, resolution: int = 256 * _MIB) -> None:
        """Ask ``runner``.

        Args:
            runner: finds out what becomes of a point.
            job: settings; its budget is what sizes and windows are fitted into.
            most: bytes of the largest budget that may be tried.
            resolution: bytes between neighbouring budgets.
        """
        assert job.budget is not None, "what is fitted into nothing has no ceiling"
        if job.budget > most:
            raise ConfigError(
                f"--into must be at most {format_size(most)}, what the card has to give, got {format_size(job.budget)}"
            )
        self._into = job.budget
        self._runner = runner
        self._job = job
        self._most = most
        self._resolution = resolution
        self._outcomes: dict[MemoryJob, Outcome] = {}

    def measure(self, budgets: Sequence[int] = (), num_budgets: int = 6) -> Ceilings:
        """Find the ceilings, then the curve over ``budgets``, or over ``num_budgets`` from the least to the most."""
        least = find_least(
            lambda budget: self._try(budget=budget).is_done, low=0, high=self._most, step=self._resolution
        )
        chosen = sorted(set(budgets)) or self._spread(least, num_budgets)
        return Ceilings(
            basis=self._runner.basis,
            job=self._job,
            into=self._into,
            least=least,
            most=self._most,
            size=find_largest(lambda size: self._try(size=size).is_done, self._sizes()),
            window=find_largest(lambda window: self._try(window=window).is_done, range(1, MAX_WINDOW + 1)),
            curve=tuple((budget, self._try(budget=budget)) for budget in chosen),
            watched=self._try(is_watched=True),
            num_points=len(self._outcomes),
        )

    def _try(self, **changes: Any) -> Outcome:
        """What becomes of the job with ``changes``; asked once."""
        job = replace(self._job, **changes)
        if job not in self._outcomes:
            self._outcomes[job] = self._runner.run(job)
        return self._outcomes[job]

    def _spread(self, least: int | None, count: int) -> list[int]:
        """Budgets in equal ratios, for speed changes with the share of the weights that stays."""
        if least is None or least >= self._most or count < 2:
            return [self._most]
        ratio = (self._most / least) ** (1 / (count - 1))
        steps = (round(least * ratio**index / self._resolution) for index in range(count))
        return sorted({min(max(step * self._resolution, least), self._most) for step in steps})

    def _sizes(self) -> list[tuple[int, int]]:
        """Sizes of about the shape of the job's, multiples of 16 px, smallest first."""
        height, width = self._job.size
        sizes = {
            (_to_sixteenth(height * eighths / 8), _to_sixteenth(width * eighths / 8)) for eighths in _EIGHTHS
        }
        return sorted(sizes)


def _to_sixteenth(edge: float) -> int:
    return max(round(edge / 16) * 16, 16)
