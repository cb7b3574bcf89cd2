"""Exact products of int8 matrices on the CPU."""

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor

# The fp32 sum of this many products of int8 values is exact: it stays within 2**24.
_EXACT_FP32_PRODUCTS = 1024
# Rows, columns and channels of the trial: large enough that the arithmetic decides, a millisecond at most where there
# are instructions for it.
_TRIAL_SIZE, _TRIAL_CHANNELS = 128, 512


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T``, exact, in fp32 with one rounding: the same bits whatever it is computed with.

    Args:
        a: int8 ``[M, K]``, any strides.
        b: int8 ``[N, K]``, any strides.
    """
    return _PRODUCTS[product_name()](a, b)


@functools.cache
def product_name() -> str:
    """What :func:`int8_product` computes with in this process: "int8" instructions or "fp32" arithmetic.

    The faster one in one trial. torch's int8 product takes part only where it is exact: on processors without VNNI it adds
    pairs of products in int16, which saturates, or one product after the other, which takes twenty times as long.
    """
    largest = torch.full((_TRIAL_SIZE, _TRIAL_CHANNELS), 127, dtype=torch.int8)
    is_exact = (integer_product(largest, largest) == _TRIAL_CHANNELS * 127**2).all()
    if not is_exact:
        return "fp32"
    return min(_PRODUCTS, key=lambda name: _seconds(_PRODUCTS[name], largest))


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """:func:`int8_product` by torch's int8 product, where that is exact."""
    return torch._int_mm(a, b.t()).float()


def fp32_product(a: Tensor, b: Tensor) -> Tensor:
    """:func:`int8_product` by fp32 arithmetic."""
    if a.shape[1] <= _EXACT_FP32_PRODUCTS:
        return a.float() @ b.float().T
    parts = zip(a.split(_EXACT_FP32_PRODUCTS, 1), b.split(_EXACT_FP32_PRODUCTS, 1), strict=True)
    product = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32)
    for a_part, b_part in parts:
        product += (a_part.float() @ b_part.float().T).int()
    return product.float()


_PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"int8": integer_product, "fp32": fp32_product}


def _seconds(product: Callable[[Tensor, Tensor], Tensor], trial: Tensor) -> float:
    """The shortest of three calls: another program's work makes one longer, none shorter."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        product(trial, trial)
        times.append(time.perf_counter() - start)
    return min(times)
