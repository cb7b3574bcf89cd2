"""``isoframe bench predict``: what every known card should do with the published model."""

from pathlib import Path
from typing import Annotated

import typer

from ..engine.commands import options


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
    from ..engine.commands.failures import readable_errors
    from .environment import read_environment
    from .predictions import make_rows
    from .predictions import predict as predict_cards
    from .rows import append_rows

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
