"""``isoframe bench budgets``: what budgets of device memory cost."""

from pathlib import Path
from typing import Annotated

import typer

from ..engine.commands import options


def budgets(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Whose shape the random weights have: framepack-13b, demo or a folder."
        ),
    ] = "framepack-13b",
    precision: Annotated[str, typer.Option("--precision", help="Of the blocks' weights.")] = "int8",
    size: options.Size = "640x608",
    steps: Annotated[
        int, typer.Option("--steps", min=3, help="Of one section; the first one does not count.")
    ] = 6,
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", metavar="SIZE", help="Repeatable (default: 4, 6, 8, 12 GiB and no limit)."),
    ] = None,
    device: options.Device = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Run steps of a model with random weights inside budgets, each in a process of its own; exit 1 if one is exceeded."""
    from ..engine.commands.failures import readable_errors
    from ..engine.config import PRECISIONS, check_choice
    from ..engine.device import resolve_device
    from ..engine.sizes import parse_size
    from .budget_rows import budget_rows
    from .budgets import BUDGETS, HEADER, BudgetJob, describe, gate, measure_budgets, resident_step
    from .rows import append_rows

    with readable_errors(debug=debug):
        check_choice("--precision", precision, PRECISIONS)
        found = options.parse_size(size)
        assert found is not None, "it has a default"
        sizes = [parse_size("--budget", text) for text in budget] if budget else BUDGETS
        target = str(resolve_device(device))
        jobs = [
            BudgetJob(
                model=model, precision=precision, size=found, num_steps=steps, device=target, budget=limit
            )
            for limit in sizes
        ]
        points = []
        typer.echo(HEADER)
        try:
            # The one without a limit first: the others are told relative to it.
            for point in measure_budgets(sorted(jobs, key=lambda job: job.budget is not None)):
                points.append(point)
                typer.echo(describe(point, resident_step(points)))
        finally:
            # Minutes of measuring are not lost with whatever stops the rest.
            if json_file is not None:
                append_rows(json_file, budget_rows(jobs, points))
        verdict = gate(points)
        typer.echo(verdict.text)
        if not verdict.is_green:
            raise typer.Exit(1)
