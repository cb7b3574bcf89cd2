"""Ahead-of-time compilation of every kernel, as its launcher launches it at the real model's shapes.

Needs no GPU: Triton brings the assembler and the disassembler of every architecture.
"""

import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ...engine.errors import ConfigError
from ...kernels import HAS_TRITON, KERNELS, KernelSpec
from ...kernels.launching.launch import ARCHS, Launch, Recording, record_launches

# Largest shared memory of one program; GeForce cards expose 99 KB of their 100.
SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 120: 101_376}
_REGISTERS = 65_536
_WARP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledKernel:
    """One Triton function compiled for one architecture.

    Attributes:
        spec: operation that launches it.
        function: name of the Triton function.
        arch: compute capability, 10 * major + minor.
        registers: of one thread.
        num_warps: of one program.
        shared_bytes: of one program.
        loop_spills: local-memory instructions inside loops, of which none are allowed.
        stack_bytes: of one thread; spills outside loops are harmless.
        mma: operand types of the tensor-core instructions.
    """

    spec: str
    function: str
    arch: int
    registers: int
    num_warps: int
    shared_bytes: int
    loop_spills: int
    stack_bytes: int
    mma: tuple[str, ...]

    def find_failures(self, expected_mma: tuple[str, ...] = ()) -> list[str]:
        """What breaks a limit, in words."""
        found = []
        if self.shared_bytes > SHARED_LIMIT[self.arch]:
            found.append(f"shared memory {self.shared_bytes} B > {SHARED_LIMIT[self.arch]} B")
        if self.loop_spills > 0:
            found.append(f"{self.loop_spills} spill instructions inside a loop")
        if self.registers * self.num_warps * _WARP > _REGISTERS:
            found.append(f"{self.registers} registers x {self.num_warps * _WARP} threads > {_REGISTERS}")
        for operand in expected_mma:
            if operand not in self.mma:
                present = ", ".join(self.mma) or "none"
                found.append(f"no {operand} tensor-core instruction (found: {present})")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledPair:
    """One operation compiled for one architecture.

    Attributes:
        spec: operation.
        arch: compute capability, 10 * major + minor.
        kernels: its Triton functions; a function with several variants appears several times.
        failures: what breaks a limit or did not compile, in words.
    """

    spec: str
    arch: int
    kernels: tuple[CompiledKernel, ...]
    failures: tuple[str, ...]


def check_triton() -> None:
    """Raise :class:`ConfigError` where Triton is not installed."""
    if not HAS_TRITON:
        raise ConfigError("Triton compiles the kernels: pip install triton")


def compile_pairs(
    names: Sequence[str], archs: Sequence[int] = ARCHS, *, num_processes: int = 1
) -> Iterator[CompiledPair]:
    """Compile and check the registered operations ``names`` for those of ``archs`` that each supports.

    Args:
        names: of operations with a Triton kernel.
        archs: compute capabilities.
        num_processes: compilations at a time; 1 stays in this process.
    """
    pairs = [(name, arch) for name in names for arch in archs if arch in KERNELS[name].archs]
    if num_processes == 1:
        yield from map(_compile_registered, pairs)
        return
    # Spawned: a fork would copy the locks of torch's and pytest's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        yield from pool.map(_compile_registered, pairs)


def _compile_registered(pair: tuple[str, int]) -> CompiledPair:
    return compile_pair(KERNELS[pair[0]], pair[1])


def compile_pair(spec: KernelSpec, arch: int) -> CompiledPair:
    """Compile ``spec`` for ``arch`` in bf16 and check the limits."""
    from triton.errors import TritonError

    try:
        kernels = tuple(compile_spec(spec, arch))
    # Triton's passes raise RuntimeError where they find no lowering.
    except (TritonError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        return CompiledPair(spec=spec.name, arch=arch, kernels=(), failures=(f"does not compile: {reason}",))
    failures = [
        f"{kernel.function}: {failure}"
        for kernel in kernels
        for failure in kernel.find_failures(spec.mma.get(kernel.function, ()))
    ]
    absent = spec.mma.keys() - {kernel.function for kernel in kernels}
    failures += [
        f"{function}: not launched, though its tensor-core type is given" for function in sorted(absent)
    ]
    return CompiledPair(spec=spec.name, arch=arch, kernels=kernels, failures=tuple(failures))


def compile_spec(
    spec: KernelSpec, arch: int, dtype: torch.dtype = torch.bfloat16
) -> Iterator[CompiledKernel]:
    """Compile every distinct launch of ``spec`` at its bench shapes for ``arch``."""
    seen = set()
    for launch in record_spec(spec, arch, dtype).launches:
        binary = _compile(launch, arch)
        if binary.hash in seen:
            continue
        seen.add(binary.hash)
        yield _inspect(spec.name, launch, binary, arch)


def record_spec(spec: KernelSpec, arch: int, dtype: torch.dtype = torch.bfloat16) -> Recording:
    """What the launcher of ``spec`` does at its bench shapes on a device of ``arch``."""
    with record_launches(arch) as recording:
        for shape in spec.bench_shapes:
            spec.launch(*spec.make_inputs(shape, dtype, torch.device("meta")))
    return recording


def _compile(launch: Launch, arch: int):  # type: ignore[no-untyped-def]
    """Triton's compiled kernel; arguments are specialized as at a real launch."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile, make_backend
    from triton.runtime.jit import create_function_from_signature

    target = GPUTarget("cuda", arch, _WARP)
    backend = make_backend(target)
    binder = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    bound, specialization, options = binder(*launch.args, **launch.meta)
    options, signature, constants, attributes = launch.kernel._pack_args(
        backend, dict(launch.meta), bound, specialization, options
    )
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return compile(source, target=target, options=options.__dict__)


def _inspect(name: str, launch: Launch, binary, arch: int) -> CompiledKernel:  # type: ignore[no-untyped-def]
    registers, stack = _resource_usage(binary.asm["cubin"])
    return CompiledKernel(
        spec=name,
        function=launch.kernel.__name__,
        arch=arch,
        registers=registers,
        num_warps=binary.metadata.num_warps,
        shared_bytes=binary.metadata.shared,
        loop_spills=_loop_spills(binary.asm["cubin"]),
        stack_bytes=stack,
        mma=mma_types(binary.asm["ptx"]),
    )


def mma_types(ptx: str) -> tuple[str, ...]:
    """Operand types of the mma and wgmma instructions of a PTX text."""
    # The accumulator's type comes first; it may be an operand's type too.
    operand = r"(?:s8|f16|bf16|e4m3|e5m2|tf32)\b"
    pattern = re.compile(rf"\b(?:wg)?mma\S*?\.(?:s32|f16|f32)\.({operand})\.{operand}")
    return tuple(sorted({match.group(1) for match in pattern.finditer(ptx)}))


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of one thread."""
    text = _tool("cuobjdump", cubin, "-res-usage")
    registers = re.search(r"REG:(\d+)", text)
    stack = re.search(r"STACK:(\d+)", text)
    if registers is None or stack is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {text[:200]!r}")
    return int(registers.group(1)), int(stack.group(1))


def _loop_spills(cubin: bytes) -> int:
    """Local-memory loads and stores between the target of a backward branch and the branch."""
    lines = _tool("nvdisasm", cubin, "-c").splitlines()
    labels = {
        match.group(1): i for i, line in enumerate(lines) if (match := re.match(r"(\.L\S+):", line.strip()))
    }
    spilling: set[int] = set()
    for i, line in enumerate(lines):
        branch = re.search(r"\bBRA\S*\s.*?(\.L\w+)", line)
        if branch is not None and (start := labels.get(branch.group(1), i)) < i:
            spilling.update(j for j in range(start, i) if re.search(r"\b(?:LDL|STL)\b", lines[j]))
    return len(spilling)


def _tool(name: str, cubin: bytes, *options: str) -> str:
    """Standard output of one of Triton's own binary tools."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([path, *options, file.name], capture_output=True, text=True, check=True).stdout
