"""Sub-commands of ``isoframe bench``. Each imports its measurement when it is called."""

import typer

from .budgets.command import budgets, predict, ram, vram
from .constant.command import constant
from .gpu.command import gpu, tune
from .operations.command import aot, kernels, micro, traffic
from .pace.command import step
from .peers.command import forward, peers
from .quality.command import magcache, quality
from .records.command import compare, results

app = typer.Typer(
    name="bench",
    help="Measure speed and quality on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    aot,
    budgets,
    compare,
    constant,
    forward,
    gpu,
    kernels,
    magcache,
    micro,
    peers,
    predict,
    quality,
    ram,
    results,
    step,
    traffic,
    tune,
    vram,
):
    app.command()(command)
