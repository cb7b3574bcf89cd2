"""Rotary rows against the tables of the packed sequence, and int8 blocks against the q and k that they stand for."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rope_reference import rope_tables
from torch import Tensor

from isoframe.engine.model.packing import rope_axis_table
from isoframe.kernels import KERNELS, aligned_rope, patchify_pack, qk_norm_rope, qk_norm_rope_int8

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
THETA, AXES_DIM, GRID = 256.0, (16, 56, 56), (5, 7)
# Packed order of pool, frames: 4x, 2x, 1x (the start frame and a neighbour), noisy.
GROUPS = ((4, range(15, 31)), (2, range(13, 15)), (1, (0, 12)), (1, range(3, 12)))


def axis_tables(frames: range | tuple[int, ...]) -> list[Tensor]:
    positions = (torch.tensor(list(frames)), torch.arange(GRID[0]), torch.arange(GRID[1]))
    tables = [
        rope_axis_table(axis.to(DEVICE), dim, THETA) for axis, dim in zip(positions, AXES_DIM, strict=True)
    ]
    return [cos for cos, _ in tables] + [sin for _, sin in tables]


def packed_tables() -> tuple[Tensor, Tensor]:
    tables = [rope_tables(frames, GRID, AXES_DIM, THETA, pool=pool, device=DEVICE) for pool, frames in GROUPS]
    cos, sin = (torch.cat(parts) for parts in zip(*tables, strict=True))
    return cos, sin


def check_sequence(write_group: Callable[[int, range | tuple[int, ...], Tensor, Tensor, int], int]) -> None:
    """``write_group`` writes one group at a row and returns the next group's row."""
    expected = packed_tables()
    written = [torch.full_like(table, float("nan")) for table in expected]
    row = 0
    for pool, frames in GROUPS:
        row = write_group(pool, frames, *written, row)
    assert row == expected[0].shape[0]
    for actual, table in zip(written, expected, strict=True):
        assert float((actual - table).abs().max()) <= 1e-6


def check_rope(function: Callable[..., Any]) -> None:
    def write_group(pool: int, frames: range | tuple[int, ...], cos: Tensor, sin: Tensor, row: int) -> int:
        function(axis_tables(frames), cos, sin, row, pool)
        return row + rope_tables(frames, GRID, AXES_DIM, THETA, pool=pool)[0].shape[0]

    check_sequence(write_group)


def check_patchify(function: Callable[..., Any]) -> None:
    def write_group(pool: int, frames: range | tuple[int, ...], cos: Tensor, sin: Tensor, row: int) -> int:
        latents = torch.randn(1, 4, len(frames), 2 * GRID[0], 2 * GRID[1], device=DEVICE)
        weight = torch.randn(8, 4, pool, 2 * pool, 2 * pool, device=DEVICE)
        packed = torch.full((1, cos.shape[0], 8), float("nan"), device=DEVICE)
        function(latents, weight, torch.zeros(8, device=DEVICE), packed, row, axis_tables(frames), cos, sin)
        is_written = packed[0, :, 0].isfinite()
        assert torch.equal(
            is_written, cos[:, 0].isfinite() & (torch.arange(cos.shape[0], device=DEVICE) >= row)
        )
        return row + int(is_written.sum())

    check_sequence(write_group)


@pytest.mark.parametrize("function", [aligned_rope, KERNELS["aligned_rope"].reference])
def test_aligned_rows_are_the_tables_of_the_packed_sequence(function: Callable[..., Any]) -> None:
    check_rope(function)


@pytest.mark.launches
def test_kernel_writes_the_tables_of_the_packed_sequence() -> None:
    check_rope(KERNELS["aligned_rope"].launch)


@pytest.mark.parametrize("function", [patchify_pack, KERNELS["patchify_pack"].reference])
def test_patchify_writes_the_tables_of_its_tokens(function: Callable[..., Any]) -> None:
    check_patchify(function)


@pytest.mark.launches
def test_kernel_of_patchify_writes_the_tables_of_its_tokens() -> None:
    check_patchify(KERNELS["patchify_pack"].launch)


def patchify_arguments() -> dict[str, Any]:
    latents, weight = torch.zeros(1, 4, 2, 10, 14), torch.zeros(8, 4, 2, 4, 4)
    cos, sin = torch.zeros(2, 12, 64)
    return {
        "latents": latents,
        "weight": weight,
        "bias": torch.zeros(8),
        "packed": torch.zeros(1, 12, 8),
        "offset": 0,
        "axes": [table.cpu() for table in axis_tables(range(2))],
        "cos": cos,
        "sin": sin,
    }


def test_patchify_without_tables_leaves_the_rotary_rows_alone() -> None:
    arguments = patchify_arguments() | {"axes": None}
    patchify_pack(**arguments)
    assert not bool(arguments["cos"].any())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cos": None}, "cos and sin must be given with axes, got None"),
        ({"axes": [torch.zeros(2, 8)]}, "axes must be 6 tables, .* got 1"),
        ({"axes": [torch.zeros(4, 8)] * 6}, r"cos must be \[N, 24\] with rows 0 to 8, got \(12, 64\)"),
        ({"latents": torch.zeros(1, 4, 2, 10, 18)}, r"packed must have rows 0 to 15, got N = 12"),
        (
            {"latents": torch.zeros(1, 4, 2, 4, 14)},
            r"axes\[1\] must have 2 positions for each of 1 patches, got 5",
        ),
        ({"sin": torch.zeros(11, 64)}, r"sin must be \[N, 64\] with rows 0 to 12, got \(11, 64\)"),
    ],
)
def test_patchify_refuses_tables_of_other_patches(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patchify_pack(**patchify_arguments() | change)


def check_int8_blocks(function: Callable[..., Any]) -> None:
    """With the mean of an earlier call, as the next step passes it in."""
    spec = KERNELS["qk_norm_rope_int8"]
    qk, q_weight, k_weight, cos, sin, _ = spec.make_inputs((1, 257, 200, 2, 64), torch.float32, DEVICE)
    # Keys share a large vector, which the smoothing takes out.
    qk = qk + 5 * torch.randn(2, 1, 64, device=DEVICE)
    q, k = qk_norm_rope(qk, q_weight, k_weight, cos, sin)
    k_mean = function(qk, q_weight, k_weight, cos, sin, torch.zeros(2, 64, device=DEVICE))[4]
    q8, q_scale, k8, k_scale, again = function(qk, q_weight, k_weight, cos, sin, k_mean)
    assert torch.equal(again, k_mean)
    assert float((k_mean - k.mean(dim=(0, 1))).abs().max()) <= 1e-5
    for values, scale, block, wanted in (
        (q8, q_scale, 128, q * (math.log2(math.e) / 8)),
        (k8, k_scale, 64, k - k_mean),
    ):
        row_scale = scale.transpose(1, 2).repeat_interleave(block, dim=1)[:, :257, :, None]
        assert float(((values * row_scale - wanted).abs() / row_scale).max()) <= 0.5001
        assert int(values.abs().max()) == 127


def test_int8_blocks_hold_q_and_k_to_half_a_step() -> None:
    check_int8_blocks(qk_norm_rope_int8)


@pytest.mark.launches
def test_kernel_of_int8_blocks_holds_q_and_k_to_half_a_step() -> None:
    check_int8_blocks(KERNELS["qk_norm_rope_int8"].launch)


@pytest.mark.parametrize("row", [3, 70, 256])
def test_block_that_is_not_finite_has_no_finite_scale(row: int) -> None:
    spec = KERNELS["qk_norm_rope_int8"]
    qk, *rest = spec.make_inputs((1, 257, 200, 1, 64), torch.float32, DEVICE)
    qk[0, row] = float("nan")
    _, q_scale, _, k_scale, _ = qk_norm_rope_int8(qk, *rest)
    assert q_scale.isnan().nonzero()[:, 2].tolist() == [row // 128]
    assert k_scale.isnan().nonzero()[:, 2].tolist() == [row // 64]
