"""Results of ``bench budgets`` as rows."""

from collections.abc import Sequence

from ..engine.sizes import format_size
from .budgets import BudgetJob, BudgetPoint, gate
from .environment import read_environment
from .rows import BenchRow, Setting, now, this_command


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
