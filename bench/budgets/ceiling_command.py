"""``isoframe bench vram``: how little memory is enough, and what fits into how much."""

from pathlib import Path
from typing import Annotated

import typer

from ...engine.interfaces.commands.terminal import options

_Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="demo, framepack-13b, a Hub id or a folder (default: demo; predicted framepack-13b).",
    ),
]
_Predict = Annotated[
    bool, typer.Option("--predict", help="Ask the planner; nothing runs. Without a GPU always so.")
]
_Card = Annotated[
    str | None, typer.Option("--card", help="Card to predict for (default: RTX 3060); implies --predict.")
]
_Budget = Annotated[
    list[str] | None,
    typer.Option("--budget", metavar="SIZE", help="A point of the curve; repeatable (default: six, evenly)."),
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
_JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
]
_Report = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write a page with plots (HTML).")
]


def vram(
    model: _Model = None,
    predict: _Predict = False,
    card: _Card = None,
    budget: _Budget = None,
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
    json_file: _JsonFile = None,
    report: _Report = None,
    debug: options.Debug = False,
) -> None:
    """Find the smallest budget that finishes and the largest size and window that fit, by bisection.

    Each point runs in a fresh process. On a machine without a GPU the planner answers, and --device cpu searches the
    budget in RAM. Exit 1 where no budget is enough.
    """
    from ...engine.interfaces.commands.terminal.failures import readable_errors
    from ...engine.request.sizes import parse_size
    from ..records.environment import read_environment
    from ..records.html_page import check_report_libraries
    from ..records.rows import append_rows
    from .card_subject import VramSubject
    from .ceiling_rows import describe, make_rows, write_vram_report
    from .ceilings import VramBench

    with readable_errors(debug=debug):
        if report is not None:
            check_report_libraries()
        is_predicted = predict or card is not None
        subject = VramSubject(
            model=model, card=card, device=device, emulate=emulate, ram=ram, is_predicted=is_predicted
        )
        pixels = options.parse_size(size)
        job = subject.job(
            into=into, size=pixels, window=window, steps=steps, precision=precision, attention=attention
        )
        gate = subject.gate()
        if not gate.is_green:
            typer.echo(gate.text)
            raise typer.Exit(1)
        bench = VramBench(
            subject.runner, job, most=subject.most, resolution=parse_size("--resolution", resolution)
        )
        result = bench.measure([parse_size("--budget", text) for text in budget or ()])
        typer.echo("\n".join(describe(result)))
        rows = make_rows(result, gate=gate, environment=read_environment(), settings=subject.settings())
        if json_file is not None:
            append_rows(json_file, rows)
        if report is not None:
            write_vram_report(report, result, rows)
    if result.least is None:
        raise typer.Exit(1)
