"""``python -P -m isoframe.bench gpu`` without typer: a rented GPU machine has torch and triton, and little else."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run ``bench gpu`` with command-line ``arguments``; the exit code: 1 without a GPU or with a wrong kernel."""
    parser = argparse.ArgumentParser(
        prog="isoframe bench gpu",
        description="Check and time every kernel and a step of the 13B model with random weights on CUDA device 0.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the rows, one file a stage"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="after which nothing new starts (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    from ..engine.errors import IsoframeError
    from .gpu import run_gpu_bench

    try:
        return 0 if run_gpu_bench(options.out, options.minutes) else 1
    except IsoframeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
