"""Sub-commands of ``isoframe bench``. Each imports its measurement when it is called."""

import typer

from .aot_command import aot
from .budgets_command import budgets
from .compare_command import compare
from .constant_command import constant
from .forward_command import forward
from .gpu_command import gpu, tune
from .kernels_command import kernels
from .magcache_command import magcache
from .micro_command import micro
from .peers_command import peers
from .predict_command import predict
from .quality_command import quality
from .ram_command import ram
from .results_command import results
from .step_command import step
from .traffic_command import traffic
from .vram_command import vram

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
