"""Claims about the int8 operations that the comparison with their references does not make.

Under the interpreter they are made of the Triton kernels, elsewhere of the operators.
"""

from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, INTERPRETED
from torch import Tensor

from isoframe.kernels import KERNELS
from isoframe.kernels._int8_product import fp32_product, int8_product
from isoframe.quant import quantize_rowwise


def call(name: str, *args: Any) -> Any:
    spec = KERNELS[name]
    function = spec.launch if INTERPRETED else spec.op
    assert function is not None
    return function(*args)


def sqnr_db(actual: Tensor, expected: Tensor) -> float:
    return float(10 * torch.log10(expected.square().mean() / (actual - expected).square().mean()))


def linear(x: Tensor, weight: Tensor, bias: Tensor, split: int = 0, gelu: bool = False) -> Tensor:
    """A float linear layer computed by the int8 operations."""
    values, row_scale = call("quantize_rows", x, split)
    weight_values, weight_scale = call("quantize_rows", weight.unsqueeze(0), split)
    out = torch.full((*x.shape[:2], weight.shape[0]), torch.nan, device=DEVICE)
    call("int8_linear", values, row_scale, weight_values[0], weight_scale[:, 0], bias, split, gelu, out)
    return out


def test_rows_are_quantized_as_weights_are() -> None:
    weight = torch.randn(40, 96, device=DEVICE)
    values, scale = call("quantize_rows", weight.unsqueeze(0), 0)
    expected_values, expected_scale = quantize_rowwise(weight)
    assert torch.equal(values[0], expected_values)
    assert torch.equal(scale[0, 0], expected_scale[:, 0])


def test_ties_round_to_even() -> None:
    x = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5], device=DEVICE)
    values, _ = call("quantize_rows", x.view(1, 1, -1), 0)
    assert values.flatten().tolist() == [127, 0, 2, 2, 0, -2]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_so_through_the_linear_layer(bad: float) -> None:
    x = torch.randn(1, 3, 32, device=DEVICE)
    x[0, 1, 5] = bad
    y = linear(x, torch.randn(16, 32, device=DEVICE), torch.zeros(16, device=DEVICE))
    assert y.isfinite().all(dim=-1).tolist() == [[True, False, True]]
    assert not y[0, 1].isfinite().any()


@pytest.mark.parametrize(("split", "gelu"), [(0, False), (0, True), (64, False)])
def test_int8_linear_keeps_the_signal_of_a_float_linear_layer(split: int, gelu: bool) -> None:
    x, weight = torch.randn(1, 50, 192, device=DEVICE), torch.randn(48, 192, device=DEVICE) / 192**0.5
    bias = torch.randn(48, device=DEVICE)
    expected = torch.nn.functional.linear(x, weight, bias)
    if gelu:
        expected = torch.nn.functional.gelu(expected, approximate="tanh")
    assert sqnr_db(linear(x, weight, bias, split, gelu), expected) > 38


def test_two_ranges_keep_a_small_range_beside_a_large_one() -> None:
    x, weight = torch.randn(1, 50, 128, device=DEVICE), torch.randn(48, 128, device=DEVICE)
    x[..., 64:] *= 1000
    weight[:, 64:] /= 1000
    bias = torch.zeros(48, device=DEVICE)
    expected = torch.nn.functional.linear(x, weight, bias)
    assert sqnr_db(linear(x, weight, bias, split=64), expected) > 38
    assert sqnr_db(linear(x, weight, bias), expected) < 10


def test_the_largest_products_of_the_largest_layer_do_not_overflow() -> None:
    num_channels = 15360
    extreme = torch.full((1, num_channels), 127, dtype=torch.int8, device=DEVICE)
    unit = torch.ones(1, 1, device=DEVICE)
    for sign in (1, -1):
        out = torch.full((1, 1, 1), torch.nan, device=DEVICE)
        args = (extreme.unsqueeze(0), unit.view(1, 1, 1), sign * extreme, unit, torch.zeros(1, device=DEVICE))
        call("int8_linear", *args, 0, False, out)
        assert out.item() == sign * num_channels * 127**2


@pytest.mark.parametrize("shape", [(1, 8, 3), (65, 2100, 40)])
def test_products_on_the_cpu_are_exact_with_and_without_int8_instructions(
    shape: tuple[int, int, int],
) -> None:
    num_rows, dim, num_cols = shape
    a = torch.randint(-128, 128, (num_rows, dim), dtype=torch.int8)
    b = torch.randint(-128, 128, (num_cols, dim), dtype=torch.int8)
    a[0], b[0] = -128, -128
    expected = (a.double() @ b.double().T).int()
    assert torch.equal(int8_product(a, b), expected)
    assert torch.equal(fp32_product(a, b), expected)


def test_split_must_lie_inside_the_channels() -> None:
    x = torch.zeros(1, 2, 8, device=DEVICE)
    with pytest.raises(ValueError, match="split must be 0 or a channel below K = 8, got 8"):
        call("quantize_rows", x, 8)


def test_row_that_does_not_fit_one_program_is_refused() -> None:
    x = torch.zeros(1, 1, 20000, device=DEVICE)
    with pytest.raises(ValueError, match="at most 16384 channels, got 20000"):
        call("quantize_rows", x, 0)


def test_transposed_weight_is_refused() -> None:
    args = list(KERNELS["int8_linear"].make_inputs((1, 2, 8, 16, 0, 0), torch.float32, DEVICE))
    args[2] = args[2].T.contiguous().T
    with pytest.raises(ValueError, match="weight must be contiguous along its last dimension"):
        call("int8_linear", *args)
