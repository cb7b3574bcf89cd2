"""docs/kernels.md, written from the registered operations and from what the compiler makes of them."""

import inspect
from collections.abc import Iterable, Iterator, Mapping

import torch

from ...kernels import KernelSpec
from ...kernels.launching.launch import ARCHS
from ..meters.accuracy import run
from .compiled_kernels import SHARED_LIMIT, CompiledKernel, CompiledPair, record_spec

COMMAND = "python -P -m isoframe.bench kernels --docs docs/kernels.md"

_INTRODUCTION = f"""\
# Kernels

Written by `{COMMAND}`; edit the specs in `kernels/`, not this file.

Every operation is a PyTorch operator of the namespace `isoframe`: its reference defines the result, the CPU runs PyTorch
code that equals it, CUDA runs the Triton kernel. The dispatcher chooses; the transformer only calls the operator. All
arithmetic but the 8-bit products is fp32, rounded once when the result is stored.

*Exactness.* "Rounding": the algebra of the published program; only roundings differ. "Approximate": 8-bit arithmetic; the
reference then defines the quantized result, and the kernel is compared with that.

*Tolerances* are relative RMS errors against the reference. Integer results may differ by one, where a value lies between
two integers, in at most the given share of their elements.

*Launch settings* ship in `kernels/data/launch_settings.json`; `isoframe bench tune` measures others on a GPU.
"""

COMPILED_TITLE = "## Compiled"
_COMPILED = f"""\
{COMPILED_TITLE}

`python -P -m isoframe.bench aot` compiles every kernel at the real model's shapes in bf16 for every architecture, without a
GPU, and fails where a limit breaks: no spill inside a loop, registers of a program at most 65 536, shared memory at most
{{shared}}, and the expected tensor-core
instruction present. The numbers are those of Triton {{version}}: registers of a thread, spill instructions inside loops,
shared memory of a program, operand type of the tensor-core instructions; the largest of all variants at those shapes.
"""


def render(specs: Mapping[str, KernelSpec], pairs: Iterable[CompiledPair], triton_version: str) -> str:
    """The whole file: ``specs`` by name, and what compiling all their pairs gave."""
    sections = [_section(specs[name]) for name in sorted(specs)]
    return "\n".join([_INTRODUCTION, *sections, _compiled(list(pairs), triton_version)])


def _section(spec: KernelSpec) -> str:
    lines = [
        f"## {spec.name}\n",
        f"`{_signature(spec)}`\n",
        f"- Computes: `{spec.formula}`",
        f"- Replaces: {spec.fuses}",
        f"- Exactness: {spec.exactness}; tolerances: {_tolerances(spec)}",
        f"- Architectures: {', '.join(f'sm_{arch}' for arch in spec.archs)}",
        *_settings(spec),
    ]
    return "\n".join(lines) + "\n"


def _signature(spec: KernelSpec) -> str:
    return f"{spec.name}({', '.join(inspect.signature(spec.reference).parameters)})"


def _tolerances(spec: KernelSpec) -> str:
    limits = [f"{str(dtype).removeprefix('torch.')} {error:.0e}" for dtype, error in spec.max_error.items()]
    args = spec.make_inputs(spec.bench_shapes[0], torch.bfloat16, torch.device("meta"))
    results = run(spec.op, args, spec.mutates)
    if not all(result.is_floating_point() for result in results):
        limits.append(f"integers {spec.max_flips:.1%}")
    return ", ".join(limits)


def _settings(spec: KernelSpec) -> Iterator[str]:
    """One line for each name of settings that the launcher asks for at the real model's shapes."""
    by_arch = {arch: record_spec(spec, arch).settings for arch in spec.archs}
    for name in by_arch[spec.archs[0]]:
        archs_of: dict[str, list[str]] = {}
        for arch, found in by_arch.items():
            options = ", ".join(f"{key} {value}" for key, value in found[name].items())
            archs_of.setdefault(options, []).append(f"sm_{arch}")
        if len(archs_of) == 1:
            text = next(iter(archs_of))
        else:
            text = "; ".join(f"{options} ({', '.join(archs)})" for options, archs in archs_of.items())
        yield f"- Launch settings `{name}`: {text}"


def _compiled(pairs: list[CompiledPair], triton_version: str) -> str:
    shared = ", ".join(f"{limit} B on sm_{arch}" for arch, limit in SHARED_LIMIT.items())
    rows: dict[tuple[str, str], dict[int, list[CompiledKernel]]] = {}
    for pair in pairs:
        for kernel in pair.kernels:
            archs = rows.setdefault((pair.spec, kernel.function), {})
            archs.setdefault(pair.arch, []).append(kernel)
    lines = [
        _COMPILED.format(shared=shared, version=triton_version),
        f"| operation | Triton function | {' | '.join(f'sm_{arch}' for arch in ARCHS)} |",
        f"|---|---|{'---|' * len(ARCHS)}",
        *(
            f"| {spec} | `{function}` | {' | '.join(_cell(archs.get(arch)) for arch in ARCHS)} |"
            for (spec, function), archs in sorted(rows.items())
        ),
    ]
    return "\n".join(lines) + "\n"


def _cell(kernels: list[CompiledKernel] | None) -> str:
    if kernels is None:
        return "not supported"
    cell = (
        f"{max(kernel.registers for kernel in kernels)} r, {max(kernel.loop_spills for kernel in kernels)} spills, "
        f"{max(kernel.shared_bytes for kernel in kernels)} B"
    )
    mma = sorted({operand for kernel in kernels for operand in kernel.mma})
    return f"{cell}, {' '.join(mma)}" if mma else cell
