"""``bench budgets``: steps of a model inside budgets of device memory: is each kept, and what does it cost?"""

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence

from ...engine.request.sizes import format_size
from ..meters.fresh_process import ProcessError
from ..records.rows import BenchRow, Gate, activation_dtype, in_words, make_rows
from .fresh_point import run_in_process
from .point import MemoryJob, Outcome

GIB = 2**30
# In bytes; None is what a card has.
BUDGETS: tuple[int | None, ...] = (4 * GIB, 6 * GIB, 8 * GIB, 12 * GIB, None)
# What the budget of a small card may cost, and how much of a step may be waiting.
_JUDGED, _MAX_SLOWDOWN, _MAX_EXPOSED = 6 * GIB, 1.05, 0.03
HEADER = f"{'budget':>10}{'planned':>10}{'peak':>10}{'ring':>6}{'resident':>10}{'s/step':>9}{'of resident':>12}{'waiting':>9}"

Run = Callable[[MemoryJob], Outcome]


def measure_budgets(
    jobs: Sequence[MemoryJob],
    tell: Callable[[str], None],
    run: Run = run_in_process,
    may_start: Callable[[], bool] = lambda: True,
) -> Iterator[Outcome]:
    """Run every job as long as one may start; a process that fails is an outcome that says so.

    The job without a limit comes first: ``tell`` gets a line of each outcome, which is told relative to that one.
    """
    tell(HEADER)
    found: list[Outcome] = []
    for job in sorted(jobs, key=lambda job: job.budget is not None):
        if not may_start():
            continue
        try:
            outcome = run(job)
        except ProcessError as error:
            outcome = Outcome(status="failed", text=_reason(error), budget=job.budget)
        found.append(outcome)
        tell(describe(outcome, resident_step(found)))
        yield outcome


def _reason(error: ProcessError) -> str:
    """The reason of a failure in one line."""
    if error.signal is not None:
        return f"the process was killed by signal {error.signal}"
    return f"the process failed: {str(error).splitlines()[-1]}"


def judge(outcomes: Sequence[Outcome]) -> list[str]:
    """What an outcome breaks of what the plan promised, in words; nothing if all is as promised."""
    done = [outcome for outcome in outcomes if outcome.is_done]
    found = [
        f"budget {_name(one)} was exceeded: {format_size(one.peak)} ({one.source})"
        for one in done
        if not one.is_kept
    ]
    found += [f"budget {_name(one)}: {problem(one)}" for one in outcomes if one.is_wrong and not one.is_done]
    found += [
        f"budget {_name(one)}: compute waits for weights {one.exposed:.1%} of the time"
        for one in done
        if one.exposed > _MAX_EXPOSED
    ]
    resident = resident_step(outcomes)
    judged = next((one for one in done if one.budget == _JUDGED), None)
    if resident is not None and judged is not None and (judged.step or 0) > _MAX_SLOWDOWN * resident:
        found.append(
            f"budget {_name(judged)}: a step takes {(judged.step or 0) / resident:.3f} of the time with all units resident, "
            f"{judged.exposed:.1%} of it waiting for weights"
        )
    return found


def gate(outcomes: Sequence[Outcome]) -> Gate:
    """Green if every budget was kept; times are told, not gated."""
    return Gate(
        is_green=not any(outcome.is_wrong for outcome in outcomes),
        text="; ".join(judge(outcomes))
        or "every budget kept, waits at most 3 %, 6 GiB at most 1.05 of all resident",
    )


def problem(outcome: Outcome) -> str:
    """Why a budget was not measured."""
    is_lacking = outcome.status == "out of memory"
    return f"out of memory while running: {outcome.text}" if is_lacking else outcome.text


def describe(outcome: Outcome, resident: float | None) -> str:
    """One line; ``resident`` is the step with all units resident."""
    if outcome.step is None:
        return f"{_name(outcome):>10}  {problem(outcome)}"
    relative = "-" if resident is None else f"{outcome.step / resident:.3f}"
    return (
        f"{_name(outcome):>10}{format_size(outcome.planned):>10}{format_size(outcome.peak):>10}{outcome.ring:>6}"
        f"{f'{outcome.num_residents} of {outcome.num_units}':>10}{outcome.step:>9.4g}{relative:>12}{outcome.exposed:>9.2%}"
    )


def resident_step(outcomes: Sequence[Outcome]) -> float | None:
    """Seconds of a step with all units resident, if one was measured."""
    return next((outcome.step for outcome in outcomes if outcome.is_done and outcome.ring == 0), None)


def median_step(times: Sequence[float]) -> float:
    """Seconds of a step from the times at which steps ended; what came before the first is left out."""
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))


def _name(outcome: Outcome) -> str:
    return "unlimited" if outcome.budget is None else format_size(outcome.budget)


def budget_rows(job: MemoryJob, outcomes: Sequence[Outcome]) -> list[BenchRow]:
    """Step, peak and waiting of every budget that was measured; ``job`` is one of the jobs, which differ in it alone."""
    verdict, rows = gate(outcomes), []
    for outcome in outcomes:
        if outcome.step is None:
            continue
        rows += make_rows(
            (
                ("budget-step", job.model, "s/it", [outcome.step]),
                ("budget-peak", job.model, "B", [outcome.peak]),
                ("budget-planned", job.model, "B", [outcome.planned]),
                ("budget-exposed", job.model, "ratio", [outcome.exposed]),
            ),
            dtype=activation_dtype("", job.device),
            precision=job.precision,
            gate=verdict,
            settings={
                "weights": "random",
                "size": in_words(job.size),
                "steps": job.num_steps,
                "device": job.device,
                "budget": None if outcome.budget is None else format_size(outcome.budget),
                "ring": outcome.ring,
                "residents": outcome.num_residents,
                "attention": outcome.attention,
                "peak_from": outcome.source,
            },
        )
    return rows
