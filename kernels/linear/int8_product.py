"""Exact int32 products of int8 matrices on the CPU."""

import functools

import torch
from torch import Tensor

# The fp32 sum of this many products of int8 values is exact: it stays within 2**24.
_EXACT_FP32_PRODUCTS = 1024


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` in int32.

    Args:
        a: int8 ``[M, K]``, any strides.
        b: int8 ``[N, K]``, any strides.
    """
    if _has_exact_int_mm():
        return torch._int_mm(a, b.t())
    return fp32_product(a, b)


def product_name() -> str:
    """What :func:`int8_product` computes with in this process: "int8" instructions or "fp32" arithmetic."""
    return "int8" if _has_exact_int_mm() else "fp32"


@functools.cache
def _has_exact_int_mm() -> bool:
    # Where the processor has no instruction for it (VNNI), pairs of products are added in int16, which saturates.
    largest = torch.full((64, 256), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.t()) == 256 * 127**2).all())


def fp32_product(a: Tensor, b: Tensor) -> Tensor:
    """:func:`int8_product` by fp32 arithmetic."""
    product = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32)
    for a_part, b_part in zip(
        a.split(_EXACT_FP32_PRODUCTS, 1), b.split(_EXACT_FP32_PRODUCTS, 1), strict=True
    ):
        product += (a_part.float() @ b_part.float().T).int()
    return product
