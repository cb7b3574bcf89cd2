"""Rounding of the operations around skipped steps: it decides what is skipped and what a skipped step shows."""

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from isoframe.kernels import KERNELS, reuse_residual, step_change

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The interpreter's bf16 arithmetic is wrong, not merely rounded.
LAUNCHED_DTYPES = (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16)


def eager_change(current: Tensor, previous: Tensor) -> float:
    """The published rule, as the published program writes it."""
    return ((current - previous).abs().mean() / previous.abs().mean()).cpu().item()


def first_inputs(dtype: torch.dtype, size: float) -> tuple[Tensor, Tensor]:
    previous = torch.randn(1, 37, 96, device=DEVICE)
    return (previous + size * torch.randn(1, 37, 96, device=DEVICE)).to(dtype), previous.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.0, 0.02, 0.1, 0.3])
def test_step_change_is_the_published_value(dtype: torch.dtype, size: float) -> None:
    current, previous = first_inputs(dtype, size)
    assert step_change(current, previous).item() == eager_change(current, previous)


@pytest.mark.launches
@pytest.mark.parametrize("dtype", LAUNCHED_DTYPES)
@pytest.mark.parametrize("size", [0.0, 0.02, 0.1, 0.3])
def test_kernel_of_step_change_rounds_as_published(dtype: torch.dtype, size: float) -> None:
    """16-bit values are equal, not close: a decision compares their sum with a threshold."""
    for _ in range(4):
        current, previous = first_inputs(dtype, size)
        assert KERNELS["step_change"].launch(current, previous).item() == eager_change(current, previous)


def check_sum_is_rounded(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """The residual is smaller than half a unit in the last place of the tokens, so it must vanish."""
    tokens = (torch.randint(0, 2, (1, 3, 96), device=DEVICE) * 2.0 + 512.0).to(dtype)
    residual = torch.randn(1, 3, 96, device=DEVICE).mul_(0.01).to(dtype)
    scale, shift = torch.randn(2, 1, 96, device=DEVICE).to(dtype)
    assert torch.equal(tokens + residual, tokens)
    actual = function(tokens, residual, scale, shift)
    assert torch.equal(actual, function(tokens, torch.zeros_like(residual), scale, shift))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reused_residual_is_added_in_the_dtype_of_the_stream(dtype: torch.dtype) -> None:
    check_sum_is_rounded(reuse_residual, dtype)


@pytest.mark.launches
@pytest.mark.parametrize("dtype", LAUNCHED_DTYPES)
def test_kernel_of_reuse_residual_adds_in_the_dtype_of_the_stream(dtype: torch.dtype) -> None:
    check_sum_is_rounded(KERNELS["reuse_residual"].launch, dtype)


@pytest.mark.parametrize("name", ["current", "previous"])
def test_step_change_refuses_tensors_that_do_not_compare(name: str) -> None:
    args = dict.fromkeys(("current", "previous"), torch.zeros(1, 2, 8)) | {name: torch.zeros(1, 0, 8)}
    with pytest.raises(ValueError, match=f"^{name} must .* got \\(1, 0, 8\\)"):
        step_change(**args)
