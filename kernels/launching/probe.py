"""Whether Triton works on this machine: it compiles a kernel, and runs it where there is a GPU."""

import os
import subprocess

import torch

from .triton_import import HAS_TRITON, tl, triton

_BLOCK = 128
_WARP = 32


@triton.jit
def _double_kernel(x_ptr, num_values, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < num_values
    x = tl.load(x_ptr + cols, mask=mask, other=0.0)
    tl.store(x_ptr + cols, 2.0 * x, mask=mask)


def find_triton_failure(device: torch.device, arch: int) -> str | None:
    """Why Triton does not work, or None.

    Args:
        device: on a CUDA device a kernel is compiled and run; for any other one it is compiled.
        arch: compute capability to compile for, 10 * major + minor.
    """
    if not HAS_TRITON:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 is set, so that nothing is compiled"
    from triton.errors import TritonError

    try:
        if device.type != "cuda":
            _compile(arch)
            return None
        values = torch.arange(_BLOCK + 1, dtype=torch.float32, device=device)
        with torch.cuda.device(device):
            _double_kernel[(2,)](values, values.numel(), BLOCK=_BLOCK)
        is_right = bool((values.cpu() == 2 * torch.arange(_BLOCK + 1)).all())
        return None if is_right else "a kernel ran and computed nonsense"
    # Compilers, drivers and missing tools fail in their own ways, all of them the answer.
    except (TritonError, RuntimeError, OSError, ImportError, subprocess.CalledProcessError) as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


def _compile(arch: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    source = ASTSource(
        fn=_double_kernel,
        signature={"x_ptr": "*fp32", "num_values": "i32", "BLOCK": "constexpr"},
        constexprs={"BLOCK": _BLOCK},
    )
    compile(source, target=GPUTarget("cuda", arch, _WARP))
