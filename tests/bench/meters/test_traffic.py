"""Traffic of a step: what the counter counts, and the limit that the transformer keeps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from isoframe.bench.commands import app
from isoframe.bench.meters import traffic
from isoframe.bench.meters.traffic import LIMITS, Mover, OpaqueAttention, Traffic, TrafficCounter
from isoframe.kernels import gated_residual, modulated_layer_norm

ROWS, COLS = 4, 8
MATRIX = ROWS * COLS * 2
VECTOR = COLS * 2


def matrix(*shape: int) -> Tensor:
    return torch.empty(shape or (ROWS, COLS), dtype=torch.bfloat16, device="meta")


def count(operation: Callable[[], object]) -> Traffic:
    with torch.no_grad(), TrafficCounter(item=3) as counter, OpaqueAttention():
        operation()
    return counter.traffic()


x, y, vector = matrix(), matrix(), matrix(COLS)
OPERATIONS: dict[str, tuple[Callable[[], object], int]] = {
    "sum": (lambda: x + y, 3 * MATRIX),
    "broadcast": (lambda: x + vector, 2 * MATRIX + VECTOR),
    "in place": (lambda: x.add_(y), 3 * MATRIX),
    "copy": (lambda: x.copy_(y), 2 * MATRIX),
    "out": (lambda: torch.add(x, y, out=matrix()), 3 * MATRIX),
    "cast": (lambda: x.float(), MATRIX + 2 * MATRIX),
    "view": (lambda: x.view(COLS, ROWS).t()[1:].unsqueeze(0), 0),
    "copied reshape": (lambda: x.t().reshape(-1), 2 * MATRIX),
    "allocation": (lambda: torch.empty_like(x), 0),
    "fill": (lambda: x.zero_(), MATRIX),
    "list": (lambda: torch.cat((x, y)), 4 * MATRIX),
    "repeated row": (lambda: vector.expand(ROWS, COLS) + y, VECTOR + 2 * MATRIX),
    "operator": (
        lambda: modulated_layer_norm(matrix(1, ROWS, COLS), matrix(1, COLS), matrix(1, COLS)),
        2 * MATRIX + 2 * VECTOR,
    ),
    "operator in place": (
        lambda: gated_residual(matrix(1, ROWS, COLS), matrix(1, ROWS, COLS), matrix(1, COLS)),
        3 * MATRIX + VECTOR,
    ),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_moves_its_arguments_and_results(operation: str) -> None:
    call, num_bytes = OPERATIONS[operation]
    counted = count(call)
    assert counted.num_bytes == num_bytes
    assert counted.product_bytes == 0


def test_products_are_counted_apart() -> None:
    counted = count(lambda: torch.nn.functional.linear(x, matrix(16, COLS), matrix(16)) + 1)
    product = MATRIX + 2 * (16 * COLS + 16 + ROWS * 16)
    assert counted.product_bytes == product
    assert counted.movers == (Mover("aten::add", 1, 2 * 2 * ROWS * 16),)


def test_attention_is_left_out_and_keeps_the_order_of_the_axes() -> None:
    q = matrix(1, 6, 2, COLS)
    results = []

    def attend() -> None:
        heads = q.transpose(1, 2)
        results.append(torch.nn.functional.scaled_dot_product_attention(heads, heads, heads))

    assert count(attend) == Traffic((), 0)
    assert results[0].transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("precision", LIMITS)
def test_step_stays_below_the_limit_of_its_precision(precision: str) -> None:
    counted = traffic.measure_isoframe(precision)
    assert 30e9 < counted.num_bytes <= LIMITS[precision]
    # 60 blocks multiply at least 10 D-wide activations of 18261 tokens each, of one byte or more.
    assert counted.product_bytes > 60 * 10 * 18261 * 3072


def test_counter_finds_what_diffusers_is_known_to_move() -> None:
    assert traffic.measure_diffusers().num_bytes == pytest.approx(848e9, rel=0.1)


@pytest.mark.parametrize(
    ("ours", "theirs", "exit_code", "line"),
    [
        (140e9, 850e9, 0, "(limit 150.0: reached), 6.1 times less"),
        (151e9, 850e9, 1, "(limit 150.0: MISSED)"),
        (140e9, 700e9, 1, "(known 848.0 +- 10%: NOT FOUND)"),
    ],
)
def test_command_exits_1_beyond_a_limit(
    monkeypatch: pytest.MonkeyPatch, ours: float, theirs: float, exit_code: int, line: str
) -> None:
    def moved(num_bytes: float) -> Traffic:
        return Traffic((Mover("aten::mul", 2, int(num_bytes)),), 10)

    monkeypatch.setattr(traffic, "measure_isoframe", lambda precision: moved(ours))
    monkeypatch.setattr(traffic, "measure_diffusers", lambda: moved(theirs))
    result = CliRunner().invoke(app, ["traffic"])
    assert result.exit_code == exit_code
    assert line in result.stdout
