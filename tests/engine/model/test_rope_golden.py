"""Rotary tables against published values."""

import math
from collections.abc import Callable

import pytest
import torch
from plain_transformer import average_pool, rope_table
from torch import Tensor

from isoframe.engine.model.packing import rope_axes, rope_axis_table
from isoframe.kernels import aligned_rope

TOLERANCE = 1e-5
THETA = 256.0
CONFIG = {"rope_axes_dim": (16, 56, 56), "rope_theta": THETA}

# Frame 5, row 2, column 4 of axes (16, 56, 56).
COS_T = (0.283662, -0.801144, 0.315322, 0.810963, 0.951568, 0.987818, 0.996950, 0.999237)
SIN_T = (-0.958924, 0.598472, 0.948985)
COS_Y = (-0.416147, -0.069817, 0.223005)
COS_X = (-0.653644, -0.990251, -0.900537)


def max_error(actual: Tensor, expected: tuple[float, ...]) -> float:
    return float((actual.double() - torch.tensor(expected, dtype=torch.float64)).abs().max())


def test_axis_tables_hold_golden_values() -> None:
    cos_t, sin_t = rope_axis_table(torch.arange(9), 16, THETA)
    assert cos_t.shape == sin_t.shape == (9, 8)
    assert cos_t.dtype == sin_t.dtype == torch.float32
    assert max_error(cos_t[5], COS_T) <= TOLERANCE
    assert max_error(sin_t[5, :3], SIN_T) <= TOLERANCE
    cos_yx, _ = rope_axis_table(torch.arange(6), 56, THETA)
    assert cos_yx.shape == (6, 28)
    assert max_error(cos_yx[2, :3], COS_Y) <= TOLERANCE
    assert max_error(cos_yx[4, :3], COS_X) <= TOLERANCE


def test_oracle_table_holds_golden_values() -> None:
    table = rope_table(torch.arange(9), 3, 6, CONFIG)[:, 5, 2, 4]
    assert max_error(table.real[:8], COS_T) <= TOLERANCE
    assert max_error(table.imag[:3], SIN_T) <= TOLERANCE
    assert max_error(table.real[8:11], COS_Y) <= TOLERANCE
    assert max_error(table.real[36:39], COS_X) <= TOLERANCE


@pytest.mark.parametrize("dim", [16, 24, 56])
def test_axis_tables_are_accurate_at_every_index_a_section_uses(dim: int) -> None:
    """Indices reach 1 + 3 windows + 28; the angles themselves are rounded to fp32."""
    positions = torch.arange(61)
    frequencies = 1 / THETA ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = positions.double()[:, None] * frequencies
    cos, sin = rope_axis_table(positions, dim, THETA)
    assert float((cos - angles.cos()).abs().max()) <= TOLERANCE
    assert float((sin - angles.sin()).abs().max()) <= TOLERANCE


def test_axis_tables_take_frames_in_any_order() -> None:
    """The start frame and its neighbour share a group: indices are not consecutive."""
    cos, sin = rope_axis_table(torch.tensor([0, 28]), 16, THETA)
    all_cos, all_sin = rope_axis_table(torch.arange(29), 16, THETA)
    assert torch.equal(cos, all_cos[[0, 28]])
    assert torch.equal(sin, all_sin[[0, 28]])


def oracle_table(frames: range, grid: tuple[int, int], pool: int) -> tuple[Tensor, Tensor]:
    """Cos and sin [N, head_dim / 2] pooled from the full table."""
    table = rope_table(torch.tensor(frames), *grid, CONFIG)
    return average_pool(table.real, pool).flatten(1).T, average_pool(table.imag, pool).flatten(1).T


def engine_table(frames: range, grid: tuple[int, int], pool: int) -> tuple[Tensor, Tensor]:
    axes = rope_axes(frames, grid, CONFIG["rope_axes_dim"], THETA)
    num_cells = math.prod(-(-len(positions) // pool) for positions in axes[:3])
    cos, sin = (torch.full((num_cells, 64), float("nan")) for _ in range(2))
    aligned_rope(axes, cos, sin, 0, pool)
    return cos, sin


@pytest.mark.parametrize("build", [engine_table, oracle_table], ids=["engine", "oracle"])
@pytest.mark.parametrize(
    ("pool", "time", "space"),
    [
        (2, (0.878, 0.969, 0.992, 0.998), (0.878,)),
        (4, (0.474, 0.850, 0.961, 0.990), (0.474, 0.625, 0.738, 0.819, 0.876)),
    ],
)
def test_pooling_shrinks_history_as_published(
    build: Callable[..., tuple[Tensor, Tensor]], pool: int, time: tuple[float, ...], space: tuple[float, ...]
) -> None:
    """Averaged phases are shorter than one and are not renormalised."""
    cos, sin = build(range(11, 11 + pool), (8, 8), pool)
    magnitude = (cos.square() + sin.square()).sqrt()
    assert len(magnitude) == (8 // pool) ** 2
    for row in magnitude:
        assert max_error(row[: len(time)], time) <= 5e-4
        assert max_error(row[8 : 8 + len(space)], space) <= 5e-4
        assert max_error(row[36 : 36 + len(space)], space) <= 5e-4


@pytest.mark.parametrize("pool", [1, 2, 4])
@pytest.mark.parametrize("grid", [(8, 8), (6, 10), (11, 13), (1, 3)], ids=str)
@pytest.mark.parametrize("frames", [range(27, 43), range(30, 32), range(7)], ids=str)
def test_engine_tables_equal_pooled_full_tables(pool: int, grid: tuple[int, int], frames: range) -> None:
    for actual, expected in zip(
        engine_table(frames, grid, pool), oracle_table(frames, grid, pool), strict=True
    ):
        assert actual.shape == expected.shape
        assert actual.dtype == torch.float32
        assert float((actual - expected).abs().max()) <= 1e-6


def test_cells_of_padding_alone_along_an_axis_keep_unit_length() -> None:
    """Nine rows pooled by four: the last cell repeats row 8, so its phases do not cancel."""
    cos, sin = engine_table(range(4), (9, 4), 4)
    rows = slice(8, 36)
    assert torch.allclose((cos.square() + sin.square())[-1, rows], torch.ones(28), atol=1e-6)
