"""An operation's results against those of its reference."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import KernelSpec

_BIG = 2**24


def run(function: Callable[..., Any], args: Sequence[Any], mutates: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The tensors that ``function`` returns or writes; ``args`` stay as they are."""
    args = [copy_with_strides(arg) if i in mutates else arg for i, arg in enumerate(args)]
    result = function(*args)
    if mutates:
        assert result is None
        return tuple(args[i] for i in mutates)
    return result if isinstance(result, tuple) else (result,)


def copy_with_strides(tensor: Tensor) -> Tensor:
    """A copy with the same strides."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor)


def find_errors(
    spec: KernelSpec, dtype: torch.dtype, actual: Sequence[Tensor], expected: Sequence[Tensor]
) -> list[str]:
    """What breaks the limits of ``spec`` for inputs of ``dtype``, in words; one entry for each wrong result."""
    if len(actual) != len(expected):
        return [f"{len(actual)} results instead of {len(expected)}"]
    return [
        f"result {i}: {error}"
        for i, (a, e) in enumerate(zip(actual, expected, strict=True))
        if (error := _find_error(spec, dtype, a, e)) is not None
    ]


def _find_error(spec: KernelSpec, dtype: torch.dtype, actual: Tensor, expected: Tensor) -> str | None:
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if actual.dtype != expected.dtype:
        return f"{actual.dtype} instead of {expected.dtype}"
    if actual.is_floating_point():
        error = relative_rms(actual, expected)
        limit = spec.max_error[dtype]
        return None if error <= limit else f"relative RMS error {error:.2e} > {limit:.0e}"
    share = share_of_flips(actual, expected)
    return (
        None
        if share <= spec.max_flips
        else f"{share:.2%} of the integers differ, more than {spec.max_flips:.2%}"
    )


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """RMS of the difference over the RMS of ``expected``.

    Elements that are NaN in both were left alone by both and do not count; NaN in one of them gives NaN.
    """
    written = ~(actual.isnan() & expected.isnan())
    squares = [0.0, 0.0]
    # In parts: results of the real model's size have no room for several fp64 copies.
    for a, e, w in zip(*(_parts(x) for x in (actual, expected, written)), strict=True):
        a, e = a[w].double(), e[w].double()
        squares[0] += float((a - e).square().sum())
        squares[1] += float(e.square().sum())
    if squares[1] == 0.0:
        return 0.0 if squares[0] == 0 else float("inf") if squares[0] > 0 else float("nan")
    return math.sqrt(squares[0] / squares[1])


def share_of_flips(actual: Tensor, expected: Tensor) -> float:
    """Share of integers that differ; 1.0 if any differs by more than one."""
    difference = (actual.int() - expected.int()).abs()
    if difference.numel() and int(difference.max()) > 1:
        return 1.0
    return float(difference.double().mean())


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = tensor.reshape(-1).split(_BIG)
    return parts
