"""Triton, or a stand-in that lets the references run where Triton is not installed."""

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:
    HAS_TRITON = False

    class _MissingLanguage:
        """Stands for ``triton.language`` in kernel signatures."""

        constexpr = None

    class _MissingKernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: object) -> Callable[..., None]:
            raise RuntimeError(
                f"{self.name} needs Triton: pip install triton (Linux) or pip install triton-windows (Windows)"
            )

    class _MissingTriton:
        """Stands for ``triton``; a kernel raises when it is launched."""

        @staticmethod
        def jit(function: Callable[..., Any]) -> _MissingKernel:
            return _MissingKernel(function.__name__)

        @staticmethod
        def next_power_of_2(value: int) -> int:
            return 1 << (value - 1).bit_length()

        @staticmethod
        def cdiv(value: int, divisor: int) -> int:
            return -(-value // divisor)

    triton, tl = _MissingTriton(), _MissingLanguage()

__all__ = ["HAS_TRITON", "tl", "triton"]
