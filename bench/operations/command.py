"""``isoframe bench`` aot, kernels, micro and traffic: the model's operations compiled, described, timed, and what they move."""

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...engine.errors import ConfigError
from ...engine.request.config import check_choice
from ..records.command_options import Document, JsonFile, append, check_choices, command, publish

if TYPE_CHECKING:
    from ..meters.traffic import Traffic
    from ..records.rows import BenchRow
    from .compiled_kernels import CompiledKernel, CompiledPair

_Processes = Annotated[int, typer.Option("--processes", min=1, help="Compilations at a time.")]
_HEADER = (
    f"{'kernel':28}{'function':40}{'arch':>7}{'registers':>11}{'spills':>8}{'shared B':>10}  tensor cores"
)


@command()
def aot(
    kernel: Annotated[
        list[str] | None, typer.Option("--kernel", help="Only this operation; repeatable.")
    ] = None,
    arch: Annotated[
        list[int] | None, typer.Option("--arch", help="Only this compute capability, such as 86; repeatable.")
    ] = None,
    processes: _Processes = 2,
) -> None:
    """Compile every kernel at the real model's shapes; exit 1 where registers, memory or instructions break a limit."""
    from ...kernels import KERNELS
    from ...kernels.launching.launch import ARCHS
    from .compiled_kernels import check_triton, compile_pairs

    names = list(KERNELS)
    check_triton()
    check_choices("--kernel", kernel, names)
    check_choices("--arch", [str(capability) for capability in arch or ()], [str(known) for known in ARCHS])
    names, archs = kernel or names, arch or list(ARCHS)
    typer.echo(_HEADER)
    failures = []
    pairs = compile_pairs(names, archs, num_processes=processes)
    for name in names:
        for capability in archs:
            if capability not in KERNELS[name].archs:
                typer.echo(f"{name:28}{'':40}{_sm(capability):>7}  not supported")
                continue
            pair = next(pairs)
            assert (pair.spec, pair.arch) == (name, capability)
            _print_pair(pair)
            failures += [f"{name} on {_sm(capability)}: {failure}" for failure in pair.failures]
    num_pairs = sum(capability in KERNELS[name].archs for name in names for capability in archs)
    typer.echo(f"{num_pairs} pairs of kernel and architecture compiled, {len(failures)} failures")
    for failure in failures:
        typer.echo(f"FAILED {failure}")
    if failures:
        raise typer.Exit(1)


def _print_pair(pair: "CompiledPair") -> None:
    for kernel in pair.kernels:
        typer.echo(_line(kernel))
    if not pair.kernels:
        typer.echo(f"{pair.spec:28}{'':40}{_sm(pair.arch):>7}  {pair.failures[0]}")


def _line(kernel: "CompiledKernel") -> str:
    return (
        f"{kernel.spec:28}{kernel.function:40}{_sm(kernel.arch):>7}{kernel.registers:11d}{kernel.loop_spills:8d}"
        f"{kernel.shared_bytes:10d}  {' '.join(kernel.mma) or '-'}"
    )


def _sm(arch: int) -> str:
    return f"sm_{arch}"


@command()
def kernels(
    docs: Document = None,
    processes: _Processes = 2,
) -> None:
    """Describe every operation: formula, fusion, exactness, tolerances, launch settings, and what it compiles to."""
    from ...kernels import KERNELS
    from ..records.environment import installed_version
    from .compiled_kernels import check_triton, compile_pairs
    from .kernels_page import render

    check_triton()
    pairs = compile_pairs(list(KERNELS), num_processes=processes)
    publish(render(KERNELS, pairs, installed_version("triton") or "unknown"), docs)


# pytest finds modules by their files, and would import this package by another name.
_SUITE = "from isoframe.bench.operations.micro_suite import test_micro\n\n__all__ = ['test_micro']\n"
_LIBRARIES = {"pytest": "pytest", "pytest_benchmark": "pytest-benchmark"}


@command()
def micro(
    only: Annotated[
        str | None, typer.Option("--only", metavar="WORDS", help="Pieces whose name has it, as pytest's -k.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Time single kernels, a small step, the sampler and the planner on this machine; exit 1 if one fails."""

    missing = [pip for name, pip in _LIBRARIES.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"bench micro needs {' and '.join(missing)}: pip install {' '.join(missing)}, or the extra isoframe[bench]"
        )
    import pytest

    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "benchmark.json"
        suite, settings = Path(folder) / "test_micro.py", Path(folder) / "none.ini"
        suite.write_text(_SUITE, encoding="utf-8")
        # The settings of whatever project the user is in are not ours.
        settings.write_text("[pytest]\n", encoding="utf-8")
        chosen = [] if only is None else ["-k", only]
        code = pytest.main(
            ["-q", "-c", str(settings), "--rootdir", folder, "-p", "no:cacheprovider", *chosen, "--benchmark-enable",
             "--benchmark-columns=median,iqr,rounds", f"--benchmark-json={stored}", "--import-mode=importlib", str(suite)]
        )  # fmt: skip
        if code == 0 and json_file is not None:
            append(json_file, _rows(json.loads(stored.read_text(encoding="utf-8"))))
    if code != 0:
        raise typer.Exit(1)


def _rows(report: dict[str, Any]) -> "list[BenchRow]":
    """Rows of the times in pytest-benchmark's ``report``."""
    import torch

    from ..records.rows import make_rows
    from .correctness import check_operations

    is_cuda = torch.cuda.is_available()
    gate = check_operations(torch.device("cuda", 0) if is_cuda else torch.device("cpu"))
    return [
        row
        for entry in report["benchmarks"]
        for row in make_rows(
            [(f"micro-{entry['group']}", entry["param"], "s", [entry["stats"]["median"]])],
            dtype="bfloat16" if is_cuda else "float32",
            gate=gate,
            settings={"rounds": entry["stats"]["rounds"], "iqr": entry["stats"]["iqr"]},
        )
    ]


@command()
def traffic(
    precision: Annotated[str, typer.Option("--precision", help="Of our transformer.")] = "bf16",
    movers: Annotated[int, typer.Option("--movers", min=1, help="Operations listed for each program.")] = 8,
) -> None:
    """Count the memory traffic of one step at 640x608, ours beside diffusers'; exit 1 above the limit.

    Operands of matrix products and attention are not counted. Needs neither weights nor a GPU.
    """
    from ..meters.traffic import (
        DIFFUSERS_BYTES,
        DIFFUSERS_TOLERANCE,
        LIMITS,
        measure_diffusers,
        measure_isoframe,
    )

    check_choice("--precision", precision, LIMITS)
    ours, theirs = measure_isoframe(precision), measure_diffusers()
    is_reached = ours.num_bytes <= LIMITS[precision]
    is_believable = abs(theirs.num_bytes / DIFFUSERS_BYTES - 1) <= DIFFUSERS_TOLERANCE
    _print_traffic(f"isoframe {precision}", ours, movers)
    _print_traffic("diffusers bf16", theirs, movers)
    typer.echo(
        f"isoframe {precision} {_gb(ours.num_bytes)} GB (limit {_gb(LIMITS[precision])}: "
        f"{'reached' if is_reached else 'MISSED'}), {theirs.num_bytes / ours.num_bytes:.1f} times less than diffusers"
    )
    typer.echo(
        f"diffusers {_gb(theirs.num_bytes)} GB (known {_gb(DIFFUSERS_BYTES)} +- {DIFFUSERS_TOLERANCE:.0%}: "
        f"{'found' if is_believable else 'NOT FOUND'})"
    )
    if not (is_reached and is_believable):
        raise typer.Exit(1)


def _print_traffic(title: str, traffic: "Traffic", num_movers: int) -> None:
    typer.echo(f"{title:32}{'calls':>8}{'GB':>9}")
    for mover in traffic.movers[:num_movers]:
        typer.echo(f"  {mover.name:30}{mover.num_calls:8d}{_gb(mover.num_bytes):>9}")
    rest = traffic.movers[num_movers:]
    if rest:
        typer.echo(
            f"  {'others':30}{sum(m.num_calls for m in rest):8d}{_gb(sum(m.num_bytes for m in rest)):>9}"
        )
    typer.echo(f"  {'sum':38}{_gb(traffic.num_bytes):>9}")
    typer.echo(f"  {'not counted: products, attention':38}{_gb(traffic.product_bytes):>9}\n")


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f}"
