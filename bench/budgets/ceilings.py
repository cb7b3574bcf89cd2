"""How little memory is enough, how much fits into it, and what it costs in speed: each point asked of a runner.

Ceilings by bisection: the least that is enough, and the most that fits. What fits is asked of someone else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, Self, TypeVar

from ...engine.errors import ConfigError
from ...engine.request.sizes import format_size
from ..meters.live_tensors import Owner, PhasePeak
from ..meters.memory_timeline import Source, TimelineSample
from ..records.rows import Basis

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


Status = Literal["done", "refused", "out of memory"]
MAX_WINDOW = 48
_MIB = 2**20
# Pictures of a quarter to three times the edges of the one that is asked for, in eighths.
_EIGHTHS = range(2, 25)


@dataclass(frozen=True, slots=True, kw_only=True)
class VramJob:
    """One point: a short job inside a budget.

    Attributes:
        model: as ``Engine.load`` takes it.
        device: "cuda", "cuda:N" or "cpu".
        budget: bytes on the device as NVML counts the process; on the CPU bytes in RAM.
        ram: bytes in RAM beside a CUDA device; None is the engine's choice.
        emulated: memory of the card that is emulated, bytes; None for this one.
        size: (height, width) in pixels.
        window: latent frames of a section.
        num_steps: steps of a section.
        precision: as in ``EngineConfig``.
        attention: the same.
        is_watched: whether time line and owners are kept, which costs speed.
    """

    model: str
    device: str
    budget: int
    ram: int | None = None
    emulated: int | None = None
    size: tuple[int, int]
    window: int = 9
    num_steps: int = 4
    precision: str
    attention: str = "auto"
    is_watched: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``dataclasses.asdict`` made, after a trip through JSON."""
        return cls(**{**values, "size": tuple(values["size"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one point.

    Attributes:
        status: "refused" by the planner before anything ran, or "out of memory" while it ran.
        text: why; of a job that is done, how it ran.
        step: seconds of a step; None where the job did not finish, as are the next two.
        frame: seconds of a frame of video, decoding included.
        peak: most bytes at once: on CUDA what the device had lent out, on the CPU the resident set.
        source: where the device's curve comes from.
        samples: memory against time; empty unless it was watched.
        owners: the worst moments, by phase; empty unless it was watched.
    """

    status: Status
    text: str
    step: float | None = None
    frame: float | None = None
    peak: int | None = None
    source: Source = "none"
    samples: tuple[TimelineSample, ...] = ()
    owners: tuple[PhasePeak, ...] = ()

    @property
    def is_done(self) -> bool:
        return self.status == "done"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``dataclasses.asdict`` made, after a trip through JSON."""
        owners = [
            PhasePeak(**{**peak, "owners": tuple(Owner(**owner) for owner in peak["owners"])})
            for peak in values["owners"]
        ]
        samples = tuple(TimelineSample.from_dict(sample) for sample in values["samples"])
        return cls(**{**values, "samples": samples, "owners": tuple(owners)})


class Runner(Protocol):
    """Finds out what becomes of a point.

    Attributes:
        basis: "measured" or "emulated" in a fresh process each, or "predicted" by the planner.
    """

    basis: Basis

    def run(self, job: VramJob) -> Outcome: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VramResult:
    """Everything that :meth:`VramBench.measure` found.

    Attributes:
        basis: how.
        job: the settings, with the budget that sizes and windows were fitted into.
        least: bytes of the smallest budget that finishes; None where the largest does not.
        most: bytes of the largest budget that was tried.
        size: largest (height, width) that fits into the budget, with the window of the job; None if none does.
        window: largest window that fits into it, with the size of the job; None if none does.
        curve: outcome by budget, smallest first.
        watched: the job at its budget, with time line and owners.
        num_points: points that were tried in all.
    """

    basis: Basis
    job: VramJob
    least: int | None
    most: int
    size: tuple[int, int] | None
    window: int | None
    curve: tuple[tuple[int, Outcome], ...]
    watched: Outcome
    num_points: int


class VramBench:
    """Finds the ceilings of one job; no point is tried twice."""

    def __init__(self, runner: Runner, job: VramJob, *, most: int, resolution: int = 256 * _MIB) -> None:
        """Ask ``runner``.

        Args:
            runner: finds out what becomes of a point.
            job: settings; its budget is what sizes and windows are fitted into.
            most: bytes of the largest budget that may be tried.
            resolution: bytes between neighbouring budgets.
        """
        if job.budget > most:
            raise ConfigError(
                f"--into must be at most {format_size(most)}, what the card has to give, got "
                f"{format_size(job.budget)}"
            )
        self._runner = runner
        self._job = job
        self._most = most
        self._resolution = resolution
        self._outcomes: dict[VramJob, Outcome] = {}

    def measure(self, budgets: Sequence[int] = (), num_budgets: int = 6) -> VramResult:
        """Find the ceilings, then the curve over ``budgets``, or over ``num_budgets`` from the least to the most."""
        least = find_least(self._is_enough, low=0, high=self._most, step=self._resolution)
        chosen = sorted(set(budgets)) or self._spread(least, num_budgets)
        curve = tuple((budget, self._try(replace(self._job, budget=budget))) for budget in chosen)
        return VramResult(
            basis=self._runner.basis,
            job=self._job,
            least=least,
            most=self._most,
            size=find_largest(lambda size: self._try(replace(self._job, size=size)).is_done, self._sizes()),
            window=find_largest(
                lambda window: self._try(replace(self._job, window=window)).is_done,
                range(1, MAX_WINDOW + 1),
            ),
            curve=curve,
            watched=self._try(replace(self._job, is_watched=True)),
            num_points=len(self._outcomes),
        )

    def _is_enough(self, budget: int) -> bool:
        return self._try(replace(self._job, budget=budget)).is_done

    def _try(self, job: VramJob) -> Outcome:
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


def as_dict(value: VramJob | Outcome) -> dict[str, Any]:
    """For JSON; ``from_dict`` reads it."""
    return asdict(value)
