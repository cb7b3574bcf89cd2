"""``isoframe bench budgets``: what budgets of device memory cost.

``isoframe bench ram``: a step with a model larger than its RAM budget.

``isoframe bench predict``: what every known card should do with the published model.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...engine.interfaces.commands.terminal import options

if TYPE_CHECKING:
    from .ram_cases import RamCase, RamResult


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
    from ...engine.device import resolve_device
    from ...engine.interfaces.commands.terminal.failures import readable_errors
    from ...engine.request.config import PRECISIONS, check_choice
    from ...engine.request.sizes import parse_size
    from ..records.rows import append_rows
    from .step_budgets import (
        BUDGETS,
        HEADER,
        BudgetJob,
        budget_rows,
        describe,
        gate,
        measure_budgets,
        resident_step,
    )

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


def ram(
    case: Annotated[list[str] | None, typer.Option("--case", help="Only this case; repeatable.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where the stores are made and kept (default: a temporary folder)."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
    ] = None,
) -> None:
    """Run a step on the CPU in less RAM than the model has, and once with all of it; exit 1 above the budget."""
    import tempfile

    from ...engine.interfaces.commands.terminal.failures import readable_errors
    from ...engine.request.config import check_choice
    from .ram_cases import CASES, build_store, describe, measure_ram

    results = []
    with readable_errors(debug=False), tempfile.TemporaryDirectory() as temporary:
        for name in case or ():
            check_choice("--case", name, CASES)
        for name in case or CASES:
            store = build_store(CASES[name], (folder or Path(temporary)) / name)
            for has_budget in (True, False):
                results.append((CASES[name], measure_ram(CASES[name], store, has_budget=has_budget)))
                typer.echo(describe(results[-1][1]))
        if json_file is not None:
            _append(json_file, results)
    if not all(result.is_reached for _, result in results if result.has_budget):
        raise typer.Exit(1)


def _append(path: Path, results: "list[tuple[RamCase, RamResult]]") -> None:
    from ..records.rows import BenchRow, Gate, append_rows

    append_rows(
        path,
        [
            BenchRow(
                case=f"ram-{result.case}",
                variant=result.tier,
                shape=(case.num_heads * 128, case.num_dual_blocks, case.num_single_blocks),
                dtype="float32",
                unit="MiB",
                values=(result.peak_bytes / 2**20,),
                gate=Gate(
                    is_green=len({other.checksum for _, other in results if other.case == result.case}) == 1,
                    text=f"same bits of the latents from every tier; limit {result.limit_bytes / 2**20:.0f} MiB",
                ),
            )
            for case, result in results
        ],
    )


def predict(
    precision: Annotated[
        list[str] | None, typer.Option("--precision", help="Repeatable; bf16 and int8.")
    ] = None,
    size: options.Size = "640x608",
    ram: Annotated[
        str, typer.Option("--ram", help="What the engine may add to its process in RAM.")
    ] = "48GiB",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
    ] = None,
) -> None:
    """Predict pace and memory by the planner for every card in its table; nothing is run or downloaded."""
    from ...engine.interfaces.commands.terminal.failures import readable_errors
    from ..records.environment import read_environment
    from ..records.rows import append_rows
    from .card_predictions import make_rows
    from .card_predictions import predict as predict_cards

    with readable_errors(debug=False):
        environment, rows = read_environment(), []
        pixels = options.parse_size(size)
        assert pixels is not None, "the option has a default"
        for found in predict_cards(precision or ("bf16", "int8"), size=pixels, ram=ram):
            plan = found.plan
            typer.echo(
                f"{found.card:20}{found.precision:12}{plan.seconds_per_step:8.2f} s/it{plan.seconds_per_frame:8.2f} s/frame"
                f"{plan.peak / 2**30:7.1f} GiB  {len(plan.residents):3d} of {plan.num_units} units stay  {plan.bottleneck}"
            )
            rows += make_rows(found, environment)
        if json_file is not None:
            append_rows(json_file, rows)
