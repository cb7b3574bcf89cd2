"""Claims about the int8 operations that the comparison with their references does not make.

Under the interpreter they are made of the Triton kernels, elsewhere of the operators.
"""

import math
import time
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, INTERPRETED
from torch import Tensor

from isoframe.kernels import KERNELS
from isoframe.kernels.launching import launch as _launch
from isoframe.kernels.linear import int8_product as int8_products
from isoframe.kernels.linear.int8_product import fp32_product, int8_product, product_name
from isoframe.quant import quantize_rowwise

ATTENTIONS = ["int8_attention", "int8_attention_fp8"]


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
    expected = (a.double() @ b.double().T).float()
    assert torch.equal(int8_product(a, b), expected)
    assert torch.equal(fp32_product(a, b), expected)


def slow(a: Tensor, b: Tensor) -> Tensor:
    """As torch's loop over single products on a processor without instructions for them: exact."""
    time.sleep(0.02)
    return (a.double() @ b.double()).int()


def saturating(a: Tensor, b: Tensor) -> Tensor:
    """As instructions that add pairs of products in 16 bits."""
    pairs = a.int().view(len(a), -1, 2)[:, :, :, None] * b.int().view(-1, 2, b.shape[1])[None]
    return pairs.sum(2).clamp(-(2**15), 2**15 - 1).sum(1)


@pytest.mark.parametrize(
    ("product", "name"), [(slow, "fp32"), (saturating, "fp32"), (None, None)], ids=["slow", "inexact", "here"]
)
def test_the_product_on_the_cpu_is_the_faster_exact_one(
    monkeypatch: pytest.MonkeyPatch, product: Any, name: str | None
) -> None:
    if product is not None:
        monkeypatch.setattr(torch, "_int_mm", product)
    product_name.cache_clear()
    monkeypatch.setattr(int8_products, "_TRIAL_CHANNELS", 512)
    try:
        found = product_name()
    finally:
        product_name.cache_clear()
    if name is not None:
        assert found == name
    elif torch.cpu._is_vnni_supported():
        assert found == "int8"


def test_the_product_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    product_name()
    monkeypatch.setattr(int8_products, "_seconds", lambda *_: pytest.fail("it was timed again"))
    int8_product(torch.ones(2, 8, dtype=torch.int8), torch.ones(3, 8, dtype=torch.int8))


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


def quantize_blocks(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """int8 values of ``[B, N, H, K]`` and a scale ``[B, H, blocks]`` for each block of rows."""
    num_tokens = x.shape[1]
    blocks = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -num_tokens % rows)).unflatten(1, (-1, rows))
    scale = blocks.abs().amax((2, 4), keepdim=True) / 127
    values = (blocks / scale).round().to(torch.int8).flatten(1, 2)[:, :num_tokens]
    return values.contiguous(), scale[:, :, 0, :, 0].transpose(1, 2).contiguous()


def attention_inputs(q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
    q8, q_scale = quantize_blocks(q * (q.shape[-1] ** -0.5 / math.log(2)), 128)
    k8, k_scale = quantize_blocks(k, 64)
    return q8, q_scale, k8, k_scale, v, torch.full_like(v, torch.nan), 0


def constant_inputs(num_keys: int, value: float) -> tuple[Any, ...]:
    """Equal scores, for which every probability is the largest, and equal values."""
    q = torch.zeros(1, num_keys, 1, 64, device=DEVICE)
    q8, k8 = q.to(torch.int8), q.to(torch.int8)
    q_scale, k_scale = (torch.ones(1, 1, -(-num_keys // rows), device=DEVICE) for rows in (128, 64))
    v = torch.full_like(q, value, dtype=torch.float16)
    return q8, q_scale, k8, k_scale, v, torch.full_like(v, torch.nan), 0


@pytest.fixture
def geforce_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum over a block in fp16, as on GeForce cards."""
    for name in ATTENTIONS:
        lowest = _launch._settings[name]["80"]
        monkeypatch.setitem(_launch._settings, name, {"80": {**lowest, "HALF_SUMS": 1}})


@pytest.mark.parametrize(("name", "similarity"), [("int8_attention", 0.9999), ("int8_attention_fp8", 0.999)])
@pytest.mark.parametrize("shape", [(1, 200, 2, 64), (1, 130, 1, 128)])
def test_int8_attention_follows_float_attention(name: str, similarity: float, shape: tuple[int, ...]) -> None:
    q, k, v = (torch.randn(shape, device=DEVICE) for _ in range(3))
    args = attention_inputs(q, k, v)
    call(name, *args)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
    assert torch.cosine_similarity(args[5].flatten(), expected.flatten(), dim=0) > similarity


@pytest.mark.parametrize("name", ATTENTIONS)
def test_rounding_does_not_depend_on_the_order_of_the_key_blocks(name: str) -> None:
    q, k, v = (torch.randn(1, 256, 1, 64, device=DEVICE) for _ in range(3))
    forward = attention_inputs(q, k, v)
    backward = attention_inputs(q, *(x.unflatten(1, (4, 64)).flip(1).flatten(1, 2) for x in (k, v)))
    call(name, *forward)
    call(name, *backward)
    assert torch.linalg.vector_norm(forward[5] - backward[5]) < 1e-5 * torch.linalg.vector_norm(forward[5])


@pytest.mark.usefixtures("geforce_settings")
@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("value", [1.0, 1000.0, 5000.0, 60000.0])
def test_sums_in_fp16_do_not_overflow(name: str, value: float) -> None:
    args = constant_inputs(130, value)
    call(name, *args)
    torch.testing.assert_close(args[5].float(), torch.full_like(args[5], value).float(), rtol=1e-3, atol=0)


@pytest.mark.usefixtures("geforce_settings")
@pytest.mark.parametrize("name", ATTENTIONS)
def test_sums_in_fp16_stay_within_the_limit_for_fp16(name: str) -> None:
    spec = KERNELS[name]
    args = spec.make_inputs((1, 200, 2, 64, 0, 200), torch.float16, DEVICE)
    expected = args[5].clone()
    spec.reference(*args[:5], expected, 0)
    call(name, *args)
    error = torch.linalg.vector_norm((args[5] - expected).float())
    assert error < spec.max_error[torch.float16] * torch.linalg.vector_norm(expected.float())


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_channel_without_values_gives_zeros(name: str) -> None:
    args = KERNELS[name].make_inputs((1, 70, 1, 64, 0, 70), torch.float32, DEVICE)
    args[4][..., 3] = 0
    call(name, *args)
    assert args[5].isfinite().all()
    assert not args[5][..., 3].any()


def test_unsupported_head_dim_is_refused() -> None:
    args = KERNELS["int8_attention"].make_inputs((1, 2, 1, 96, 0, 2), torch.float32, DEVICE)
    with pytest.raises(
        ValueError, match=r"q8 must be \[B, N, H, K\] with K in \(64, 128\), got \(1, 2, 1, 96\)"
    ):
        call("int8_attention", *args)


def test_queries_past_the_last_row_are_refused() -> None:
    args = KERNELS["int8_attention"].make_inputs((1, 9, 1, 64, 5, 5), torch.float32, DEVICE)
    with pytest.raises(ValueError, match="first_query must be 0 to N - M = 4, got 5"):
        call("int8_attention", *args)
