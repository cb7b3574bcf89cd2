"""The stage of ``bench gpu`` that runs the 13B model inside budgets."""

from ...engine.families.framepack.shapes import PUBLISHED_NAME
from ..budgets.step_budgets import (
    BUDGETS,
    HEADER,
    BudgetJob,
    BudgetPoint,
    Runner,
    budget_rows,
    describe,
    gate,
    measure_budgets,
    resident_step,
    run_in_process,
)
from ..records.rows import append_rows
from ..subjects.single_step import SHAPE_640X608
from .job_stages import GpuRun

_BUDGET_STEPS = 4


def time_budgets(bench: GpuRun, run: Runner = run_in_process) -> int:
    """Run steps of the 13B model in int8 inside budgets of the device, each in a process of its own; how many were exceeded or failed."""
    # The one without a limit first: the others are told relative to it.
    jobs = [
        BudgetJob(
            model=PUBLISHED_NAME,
            precision="int8",
            size=SHAPE_640X608.size,
            num_steps=_BUDGET_STEPS,
            device=str(bench.device),
            budget=budget,
        )
        for budget in sorted(BUDGETS, key=lambda budget: budget is not None)
    ]
    points: list[BudgetPoint] = []
    print(HEADER, flush=True)
    for point in measure_budgets(jobs, run, lambda: bench.has_time("budget", "the 13B model")):
        points.append(point)
        print(describe(point, resident_step(points)), flush=True)
    print(gate(points).text, flush=True)
    append_rows(bench.folder / "budgets.jsonl", budget_rows(jobs, points))
    return sum(point.is_wrong for point in points)
