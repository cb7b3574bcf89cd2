"""A matrix product that is launched badly, each time in another way."""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from isoframe.kernels import KernelSpec
from isoframe.kernels.launching.launch import launch

SIZE = 4096


@triton.jit
def _product_kernel(
    x_ptr,
    y_ptr,
    out_ptr,
    size,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    IS_FP8: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    depth = tl.arange(0, DEPTH)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, size, DEPTH):
        x = tl.load(x_ptr + rows[:, None] * size + start + depth[None, :])
        y = tl.load(y_ptr + (start + depth[:, None]) * size + cols[None, :])
        if IS_FP8:
            x, y = x.to(tl.float8e4nv), y.to(tl.float8e4nv)
        total = tl.dot(x, y, total)
    tl.store(out_ptr + rows[:, None] * size + cols[None, :], total.to(out_ptr.dtype.element_ty))


def product_spec(mma: Mapping[str, tuple[str, ...]], *, is_fp8: bool = False, **tiles: int) -> KernelSpec:
    """A product of two bf16 matrices with tiles ROWS, COLS and DEPTH, num_warps and num_stages."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        out = torch.empty_like(x)
        grid = (SIZE // tiles["ROWS"], SIZE // tiles["COLS"])
        launch(_product_kernel, grid, x, y, out, SIZE, IS_FP8=is_fp8, **tiles)
        return out

    def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        return tuple(torch.empty(shape, dtype=dtype, device=device) for _ in range(2))

    return KernelSpec(
        name="product",
        formula="x y",
        fuses="nothing",
        exactness="rounding",
        op=run,
        reference=torch.matmul,
        launch=run,
        make_inputs=make_inputs,
        test_shapes=(),
        bench_shapes=((SIZE, SIZE),),
        max_error={},
        mma=mma,
    )
