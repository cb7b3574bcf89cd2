"""A step of a model inside budgets of device memory: is each kept, and what does it cost.

Results of ``bench budgets`` as rows.
"""

import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from ...engine.request.sizes import format_size
from ..meters.fresh_process import ProcessError, run_module
from ..records.environment import read_environment
from ..records.rows import BenchRow, Gate, Setting, now, this_command

GIB = 2**30
# In bytes; None is what a card has.
BUDGETS: tuple[int | None, ...] = (4 * GIB, 6 * GIB, 8 * GIB, 12 * GIB, None)
# What the budget of a small card may cost, and how much of a step may be waiting.
_JUDGED, _MAX_SLOWDOWN, _MAX_EXPOSED = 6 * GIB, 1.05, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetJob:
    """What one process measures.

    Attributes:
        model: "framepack-13b", "demo" or a folder; only its shape is taken.
        precision: of the units.
        size: (height, width) in pixels.
        num_steps: of one section; the first one warms up and does not count.
        device: "cpu" or "cuda:N".
        budget: bytes on the device, context included; on the CPU in RAM; None is what there is.
    """

    model: str
    precision: str
    size: tuple[int, int]
    num_steps: int
    device: str
    budget: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPoint:
    """One budget, measured.

    Attributes:
        budget: bytes; None was no limit.
        allowed: bytes that the planner had.
        planned: of its largest phase.
        peak: of the process, as ``basis`` says.
        basis: where ``peak`` comes from.
        ring: slots that units passed through; 0 where all were resident.
        num_residents: units that stayed.
        num_units: units of the model.
        step: seconds.
        exposed: part of it in which compute waited for a unit.
        attention: that was used.
        problem: why it was not measured; nothing else is known then.
        has_failed: whether that is no refusal of the planner: what it allowed went wrong.
    """

    budget: int | None
    allowed: int = 0
    planned: int = 0
    peak: int = 0
    basis: str = ""
    ring: int = 0
    num_residents: int = 0
    num_units: int = 0
    step: float = 0.0
    exposed: float = 0.0
    attention: str = ""
    problem: str = ""
    has_failed: bool = False

    @property
    def is_kept(self) -> bool:
        """Whether the process took no more than it was allowed."""
        return not self.problem and self.peak <= self.allowed

    @property
    def is_wrong(self) -> bool:
        """Whether the planner allowed it, and it was not kept."""
        return self.has_failed or (not self.problem and not self.is_kept)


Runner = Callable[[BudgetJob], BudgetPoint]


def run_in_process(job: BudgetJob) -> BudgetPoint:
    """Measure ``job`` in a fresh process: context and allocator begin anew."""
    return BudgetPoint(**run_module("budgets.step_probe", json.dumps(asdict(job))))


def measure_budgets(
    jobs: Sequence[BudgetJob], run: Runner = run_in_process, may_start: Callable[[], bool] = lambda: True
) -> Iterator[BudgetPoint]:
    """A point for every job, as long as one may start; a process that fails is a point that says so."""
    for job in jobs:
        if not may_start():
            continue
        try:
            yield run(job)
        except ProcessError as error:
            yield BudgetPoint(budget=job.budget, problem=_reason(error), has_failed=True)


def _reason(error: ProcessError) -> str:
    """In one line."""
    if error.signal is not None:
        return f"the process was killed by signal {error.signal}"
    return f"the process failed: {str(error).splitlines()[-1]}"


def judge(points: Sequence[BudgetPoint]) -> list[str]:
    """What is not as promised; nothing if all is."""
    found = [
        f"budget {_name(point.budget)} was exceeded: {format_size(point.peak)} ({point.basis})"
        for point in points
        if not point.problem and not point.is_kept
    ]
    found += [f"budget {_name(point.budget)}: {point.problem}" for point in points if point.has_failed]
    found += [
        f"budget {_name(point.budget)}: compute waits for weights {point.exposed:.1%} of the time"
        for point in points
        if point.exposed > _MAX_EXPOSED
    ]
    resident = next((point for point in points if not point.problem and point.ring == 0), None)
    judged = next((point for point in points if point.budget == _JUDGED and not point.problem), None)
    if resident is not None and judged is not None and judged.step > _MAX_SLOWDOWN * resident.step:
        found.append(
            f"budget {_name(_JUDGED)}: a step takes {judged.step / resident.step:.3f} of the time with all units resident, "
            f"{judged.exposed:.1%} of it waiting for weights"
        )
    return found


def gate(points: Sequence[BudgetPoint]) -> Gate:
    """Green if every budget was kept; times are told, not gated."""
    problems = judge(points)
    return Gate(
        is_green=not any(point.is_wrong for point in points),
        text="; ".join(problems)
        or "every budget kept, waits at most 3 %, 6 GiB at most 1.05 of all resident",
    )


HEADER = f"{'budget':>10}{'planned':>10}{'peak':>10}{'ring':>6}{'resident':>10}{'s/step':>9}{'of resident':>12}{'waiting':>9}"


def describe(point: BudgetPoint, resident: float | None) -> str:
    """One line; ``resident`` is the step with all units resident."""
    if point.problem:
        return f"{_name(point.budget):>10}  {point.problem}"
    relative = "-" if resident is None else f"{point.step / resident:.3f}"
    return (
        f"{_name(point.budget):>10}{format_size(point.planned):>10}{format_size(point.peak):>10}{point.ring:>6}"
        f"{f'{point.num_residents} of {point.num_units}':>10}{point.step:>9.4g}{relative:>12}{point.exposed:>9.2%}"
    )


def resident_step(points: Sequence[BudgetPoint]) -> float | None:
    """Seconds of a step with all units resident, if one was measured."""
    return next((point.step for point in points if not point.problem and point.ring == 0), None)


def median_step(times: Sequence[float]) -> float:
    """Seconds of a step from the times at which steps ended; what came before the first is left out."""
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))


def _name(budget: int | None) -> str:
    return "unlimited" if budget is None else format_size(budget)


def budget_rows(jobs: Sequence[BudgetJob], points: Sequence[BudgetPoint]) -> list[BenchRow]:
    """Step, peak and waiting of every budget that was measured."""
    by_budget = {job.budget: job for job in jobs}
    verdict, environment = gate(points), read_environment()
    rows = []
    for point in points:
        if point.problem:
            continue
        job = by_budget[point.budget]
        settings: dict[str, Setting] = {
            "weights": "random",
            "size": "x".join(map(str, job.size)),
            "steps": job.num_steps,
            "device": job.device,
            "budget": None if point.budget is None else format_size(point.budget),
            "ring": point.ring,
            "residents": point.num_residents,
            "attention": point.attention,
            "peak_from": point.basis,
        }
        quantities = (
            ("step", "s/it", point.step),
            ("peak", "B", float(point.peak)),
            ("planned", "B", float(point.planned)),
            ("exposed", "ratio", point.exposed),
        )
        rows += [
            BenchRow(
                case=f"budget-{name}",
                variant=job.model,
                shape=(),
                dtype="float32" if job.device == "cpu" else "bfloat16",
                precision=job.precision,
                unit=unit,
                values=(value,),
                gate=verdict,
                settings=settings,
                environment=environment,
                command=this_command(),
                date=now(),
            )
            for name, unit, value in quantities
        ]
    return rows
