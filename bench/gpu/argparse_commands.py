"""``gpu`` and ``tune`` of ``python -P -m isoframe.bench`` without typer.

A rented GPU machine has torch and triton, and little else.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def gpu(arguments: list[str]) -> int:
    """Run ``bench gpu`` with command-line ``arguments``; the exit code: 1 without a GPU or with a wrong kernel."""
    parser = argparse.ArgumentParser(
        prog="isoframe bench gpu",
        description="Check and time every kernel and a step of the 13B model with random weights on CUDA device 0; then paces, "
        "constant cost, memory ceilings and diffusers' pipeline, as far as time, memory and libraries allow.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the rows, one file a stage"
    )
    _add_minutes(parser)
    options = parser.parse_args(arguments)
    from .kernel_stages import run_gpu_bench

    return _exit_code(lambda: run_gpu_bench(options.out, options.minutes))


def tune(arguments: list[str]) -> int:
    """Run ``bench tune`` with command-line ``arguments``; the exit code: 1 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="isoframe bench tune",
        description="Measure launch settings on CUDA device 0 and write the fastest that were found.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="settings to write, others in it are kept (default: where the engine looks for them)",
    )
    parser.add_argument(
        "--kernel", action="append", default=[], metavar="NAME", help="only these settings; repeatable"
    )
    _add_minutes(parser)
    options = parser.parse_args(arguments)
    return _exit_code(lambda: _tune(options.out or _default_settings(), options.kernel, options.minutes))


def _tune(path: Path, names: list[str], minutes: float) -> bool:
    import torch

    from ...engine.model.attention_backends import device_capability
    from ..operations.launch_tuning import tune, write_settings

    for tuning in tune(names, minutes):
        change = f"{1e3 * tuning.shipped_seconds:.3f} ms -> {1e3 * tuning.best_seconds:.3f} ms"
        values = ", ".join(f"{key} {value}" for key, value in tuning.best.items())
        print(f"{tuning.name:28} {change}, {tuning.num_tried} tried: {values}", flush=True)
        write_settings(path, device_capability(torch.device("cuda", 0)), [tuning])
    return True


def _default_settings() -> Path:
    from ...engine.request.config import TUNED_SETTINGS, EngineConfig

    path = EngineConfig().cache_path() / TUNED_SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _add_minutes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="after which nothing new starts (default: %(default)s)"
    )


def _exit_code(command: Callable[[], bool]) -> int:
    from ...engine.errors import IsoframeError

    try:
        return 0 if command() else 1
    except IsoframeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


COMMANDS = {"gpu": gpu, "tune": tune}
