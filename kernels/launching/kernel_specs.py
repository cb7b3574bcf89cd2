"""What tests and benchmarks need to know about each kernel."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .launch import ARCHS

Shape = tuple[int, ...]

KERNELS: dict[str, "KernelSpec"] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """One operation and the facts that verify and measure it.

    Attributes:
        name: operator name, without the namespace.
        formula: what it computes, one line.
        fuses: what would be separate operations without it.
        exactness: "rounding" (the same algebra as the reference) or "approximate" (8-bit arithmetic; the reference
            then defines the quantized result).
        op: the registered operator.
        reference: PyTorch definition of the result, with fp32 arithmetic; same signature as ``op``.
        launch: Triton path; takes CPU tensors under ``TRITON_INTERPRET=1`` and meta tensors while launches are
            recorded.
        make_inputs: maps ``(shape, dtype, device)`` to positional arguments; the device may be "meta". Arguments that
            are written and not read hold NaN, so that elements left unwritten show.
        test_shapes: small shapes, odd sizes included.
        bench_shapes: shapes of the real model.
        max_error: largest accepted relative RMS error of floating-point results against ``reference``, per dtype of
            ``make_inputs``.
        max_flips: largest accepted share of the elements of an integer result that differ from the reference, each
            by one: values that lie between two integers.
        mutates: positions of the arguments that the operation writes; it then returns None.
        strided: positions of the arguments that may have any strides along their first two dimensions.
        archs: compute capabilities that the kernel supports.
        mma: tensor-core operand types ("s8", "f16", "bf16", "e4m3") that each Triton function, by its name, must
            use; functions without matrix products are absent.
    """

    name: str
    formula: str
    fuses: str
    exactness: Literal["rounding", "approximate"]
    op: Callable[..., Any]
    reference: Callable[..., Any]
    launch: Callable[..., Any]
    make_inputs: Callable[[Shape, torch.dtype, torch.device], tuple[Any, ...]]
    test_shapes: tuple[Shape, ...]
    bench_shapes: tuple[Shape, ...]
    max_error: Mapping[torch.dtype, float]
    max_flips: float = 1e-3
    mutates: tuple[int, ...] = ()
    strided: tuple[int, ...] = ()
    archs: tuple[int, ...] = ARCHS
    mma: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def register(spec: KernelSpec) -> None:
    """Add ``spec`` to :data:`KERNELS`."""
    if spec.name in KERNELS:
        raise ValueError(f"kernel {spec.name!r} is registered twice")
    KERNELS[spec.name] = spec
