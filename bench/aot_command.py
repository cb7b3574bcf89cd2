"""``isoframe bench aot``: every kernel compiled for every architecture, without a GPU."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .aot import CompiledKernel, CompiledPair

_HEADER = (
    f"{'kernel':28}{'function':40}{'arch':>7}{'registers':>11}{'spills':>8}{'shared B':>10}  tensor cores"
)


def aot(
    kernel: Annotated[
        list[str] | None, typer.Option("--kernel", help="Only this operation; repeatable.")
    ] = None,
    arch: Annotated[
        list[int] | None, typer.Option("--arch", help="Only this compute capability, such as 86; repeatable.")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Compilations at a time.")] = 2,
) -> None:
    """Compile every kernel at the real model's shapes; exit 1 where registers, memory or instructions break a limit."""
    from ..engine.commands.failures import readable_errors
    from ..engine.config import check_choice
    from ..kernels import KERNELS
    from ..kernels._launch import ARCHS
    from .aot import check_triton, compile_pairs

    names = list(KERNELS)
    with readable_errors(debug=False):
        check_triton()
        for name in kernel or ():
            check_choice("--kernel", name, names)
        for capability in arch or ():
            check_choice("--arch", str(capability), [str(known) for known in ARCHS])
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
