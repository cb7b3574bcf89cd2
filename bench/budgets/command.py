"""``isoframe bench`` budgets, ram, vram and predict: what fits into how much memory, and what does it cost?"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ...engine.request.config import PRECISIONS, check_choice
from ...engine.request.sizes import parse_size
from ..records.command_options import (
    Budgets,
    Cases,
    JsonFile,
    ResultFiles,
    SomeModel,
    append,
    check_choices,
    command,
    options,
)


@command()
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
    budget: Budgets = None,
    device: options.Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Run steps of a model with random weights inside budgets (default: 4, 6, 8, 12 GiB and no limit), each in a process
    of its own; exit 1 if one is exceeded."""
    from dataclasses import replace

    from ...engine.device import resolve_device
    from .point import MemoryJob, Outcome
    from .step_budgets import BUDGETS, budget_rows, gate, measure_budgets

    check_choice("--precision", precision, PRECISIONS)
    found = options.parse_size(size)
    assert found is not None, "it has a default"
    job = MemoryJob(
        work="steps",
        model=model,
        precision=precision,
        size=found,
        num_steps=steps,
        device=str(resolve_device(device)),
        budget=None,
    )
    sizes = [parse_size("--budget", text) for text in budget] if budget else BUDGETS
    outcomes: list[Outcome] = []
    try:
        for outcome in measure_budgets([replace(job, budget=limit) for limit in sizes], typer.echo):
            outcomes.append(outcome)
    finally:
        # Minutes of measuring are not lost with whatever stops the rest.
        append(json_file, budget_rows(job, outcomes))
    verdict = gate(outcomes)
    typer.echo(verdict.text)
    if not verdict.is_green:
        raise typer.Exit(1)


@command()
def ram(
    case: Cases = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where the stores are made and kept (default: a temporary folder)."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Run a step on the CPU in less RAM than the model has, and once with all of it; exit 1 above the budget."""
    from .ram_cases import CASES, RamResult, build_store, measure_ram, ram_rows

    results: list[RamResult] = []
    with tempfile.TemporaryDirectory() as temporary:
        check_choices("--case", case, list(CASES))
        for name in case or CASES:
            store = build_store(CASES[name], (folder or Path(temporary)) / name)
            for has_budget in (True, False):
                results.append(measure_ram(CASES[name], store, has_budget=has_budget))
                typer.echo(results[-1].describe())
        append(json_file, ram_rows(results))
    if not all(result.is_reached for result in results if result.outcome.budget):
        raise typer.Exit(1)


@command()
def predict(
    precision: Annotated[
        list[str] | None, typer.Option("--precision", help="Repeatable; bf16 and int8.")
    ] = None,
    size: options.Size = "640x608",
    ram: Annotated[
        str, typer.Option("--ram", help="What the engine may add to its process in RAM.")
    ] = "48GiB",
    json_file: JsonFile = None,
) -> None:
    """Predict pace and memory by the planner for every card in its table; nothing is run or downloaded."""
    from .card_predictions import predict as predict_cards
    from .card_predictions import prediction_rows

    rows = []
    pixels = options.parse_size(size)
    assert pixels is not None, "the option has a default"
    for found in predict_cards(precision or ("bf16", "int8"), size=pixels, ram=ram):
        plan = found.plan
        typer.echo(
            f"{found.card:20}{found.precision:12}{plan.seconds_per_step:8.2f} s/it{plan.seconds_per_frame:8.2f} s/frame"
            f"{plan.peak / 2**30:7.1f} GiB  {len(plan.residents):3d} of {plan.num_units} units stay  {plan.bottleneck}"
        )
        rows += prediction_rows(found)
    append(json_file, rows)


_Predict = Annotated[
    bool, typer.Option("--predict", help="Ask the planner; nothing runs. Without a GPU always so.")
]
_Card = Annotated[
    str | None, typer.Option("--card", help="Card to predict for (default: RTX 3060); implies --predict.")
]
_Into = Annotated[
    str | None,
    typer.Option(
        "--into",
        metavar="SIZE",
        help="Budget that the largest size and window are sought for (default: 6GiB).",
    ),
]
_Emulate = Annotated[
    str | None,
    typer.Option(
        "--emulate",
        metavar="SIZE",
        help="Let each process have no more than a card of SIZE has; results are labelled emulated.",
    ),
]
_Steps = Annotated[int, typer.Option("--steps", min=2, help="Denoising steps of each of the two sections.")]
_Resolution = Annotated[
    str, typer.Option("--resolution", metavar="SIZE", help="Between neighbouring budgets of the search.")
]


@command()
def vram(
    output: ResultFiles,
    model: SomeModel = None,
    predict: _Predict = False,
    card: _Card = None,
    budget: Budgets = None,
    into: _Into = None,
    emulate: _Emulate = None,
    size: options.Size = None,
    window: options.Window = 9,
    steps: _Steps = 4,
    device: options.Device = "auto",
    precision: options.Precision = None,
    attention: options.Attention = "auto",
    ram: options.Ram = None,
    resolution: _Resolution = "256MiB",
) -> None:
    """Find the smallest budget that finishes and the largest size and window that fit, by bisection.

    Each point runs in a fresh process; the curve has the points of --budget, or six. On a machine without a GPU the planner
    answers, and --device cpu searches the budget in RAM. Exit 1 where no budget is enough.
    """
    from .card_subject import CardSubject
    from .ceiling_rows import ceiling_rows, describe, write_ceilings_page
    from .ceilings import CeilingSearch

    output.check()
    subject = CardSubject(
        model=model,
        card=card,
        device=device,
        emulate=emulate,
        ram=ram,
        is_predicted=predict or card is not None,
    )
    pixels = options.parse_size(size)
    job = subject.job(
        into=into, size=pixels, window=window, steps=steps, precision=precision, attention=attention
    )
    gate = subject.gate()
    if not gate.is_green:
        typer.echo(gate.text)
        raise typer.Exit(1)
    search = CeilingSearch(
        subject.runner, job, most=subject.most, resolution=parse_size("--resolution", resolution)
    )
    result = search.measure([parse_size("--budget", text) for text in budget or ()])
    typer.echo("\n".join(describe(result)))
    rows = ceiling_rows(result, gate=gate, settings=subject.settings())
    output.store(rows, lambda path: write_ceilings_page(path, result, rows))
    if result.least is None:
        raise typer.Exit(1)
