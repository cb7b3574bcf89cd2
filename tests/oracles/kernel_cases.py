"""Inputs of every registered operation, for tests that hold for all of them."""

import inspect
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from isoframe.kernels import KERNELS, KernelSpec

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SPECS = [pytest.param(spec, id=name) for name, spec in KERNELS.items()]


def cases(*, launched: bool) -> list[Any]:
    """Every spec, test shape and dtype; with ``launched`` those whose Triton kernel can run here."""
    return [
        pytest.param(spec, shape, dtype, id=f"{name}-{'x'.join(map(str, shape))}-{dtype_name(dtype)}")
        for name, spec in KERNELS.items()
        for shape in spec.test_shapes
        for dtype in spec.max_error
        if not launched or is_launchable(dtype)
    ]


def is_launchable(dtype: torch.dtype) -> bool:
    # The interpreter's bf16 arithmetic is wrong, not merely rounded.
    return not (INTERPRETED and dtype == torch.bfloat16)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def argument_names(spec: KernelSpec) -> list[str]:
    return list(inspect.signature(spec.reference).parameters)


def spread(tensor: Tensor) -> Tensor:
    """A copy [B, N, ...] whose rows lie apart, with poison between them."""
    batch, rows, *rest = tensor.shape
    apart = torch.empty((batch, rows, 2, *rest), dtype=tensor.dtype, device=tensor.device)
    apart.fill_(float("nan") if tensor.is_floating_point() else 99)
    apart[:, :, 0] = tensor
    return apart[:, :, 0]


def strided_inputs(spec: KernelSpec, shape: tuple[int, ...], dtype: torch.dtype) -> list[Any]:
    """Inputs whose arguments are strided where the operation promises to take them so."""
    args = spec.make_inputs(shape, dtype, DEVICE)
    return [spread(arg) if i in spec.strided else arg for i, arg in enumerate(args)]
