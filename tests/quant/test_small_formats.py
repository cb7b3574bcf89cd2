"""fp8 and NF4: error bounds, rows that are encoded apart, and products."""

import itertools

import pytest
import torch
from torch import Tensor

from isoframe.quant import Fp8Format, Nf4Format, WeightFormat
from isoframe.quant.fp8 import Fp8Linear, quantize_fp8_rows
from isoframe.quant.nf4 import BLOCK, CODES, decode_nf4, encode_nf4

FORMATS = [Fp8Format(torch.float32), Nf4Format(torch.float32)]


def wide(rows: int, cols: int) -> Tensor:
    """Rows of very different size."""
    return torch.randn(rows, cols) * torch.logspace(-3, 3, rows).unsqueeze(1)


def decoded(weight_format: WeightFormat, weight: Tensor) -> Tensor:
    return weight_format.decode(weight_format.encode(weight))


def test_fp8_errs_by_at_most_one_sixteenth_of_each_value() -> None:
    weight = wide(16, 128)
    error = (decoded(FORMATS[0], weight) - weight).abs()
    # Three bits after the first, and subnormal steps of 2^-9 below 2^-6 of 448.
    smallest = weight.abs().amax(dim=1, keepdim=True) / 448 * 2**-10
    assert (error <= weight.abs() / 16 + 1.001 * smallest).all()


def test_nf4_errs_by_at_most_half_the_widest_gap_of_its_codes() -> None:
    weight = wide(16, 128)
    blocks = weight.unflatten(1, (-1, BLOCK))
    error = (decoded(FORMATS[1], weight) - weight).unflatten(1, (-1, BLOCK)).abs()
    widest = max(b - a for a, b in itertools.pairwise(CODES))
    assert (error <= 0.5001 * widest * blocks.abs().amax(dim=2, keepdim=True)).all()


def test_the_values_that_nf4_can_hold_come_back_exactly() -> None:
    weight = torch.tensor(CODES).repeat(4)[None] * torch.tensor([[0.5], [3.0]])
    assert torch.equal(decoded(FORMATS[1], weight), weight)


@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f.name)
def test_zero_rows_stay_zero(weight_format: WeightFormat) -> None:
    assert not decoded(weight_format, torch.zeros(3, 128)).any()


@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f.name)
def test_stacked_rows_are_encoded_as_they_are_alone(weight_format: WeightFormat) -> None:
    weight = wide(24, 128)
    whole, part = weight_format.encode(weight), weight_format.encode(weight[5:9])
    for name, tensor in weight_format.storage(24, 128).items():
        assert whole[name].dtype == tensor.dtype
        assert tuple(whole[name].shape) == tensor.shape
        assert torch.equal(
            whole[name].narrow(tensor.row_axis, 5, 4).view(torch.uint8),
            part[name].contiguous().view(torch.uint8),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Fp8Format, Nf4Format])
def test_a_layer_multiplies_by_the_weight_that_its_storage_stands_for(
    kind: type[Fp8Format | Nf4Format], dtype: torch.dtype
) -> None:
    weight, bias, x = torch.randn(24, 128), torch.randn(24).to(dtype), torch.randn(1, 7, 128).to(dtype)
    weight_format = kind(dtype)
    stored = weight_format.encode(weight)
    layer = weight_format.layer(stored, bias).unpacked()
    out = torch.empty(1, 7, 24, dtype=dtype)
    layer.into(layer.input(x), out)
    expected = torch.nn.functional.linear(x, weight_format.decode(stored).to(dtype), bias)
    torch.testing.assert_close(out, expected)


def fp8_linear(rows: int, cols: int) -> tuple[Fp8Linear, Tensor]:
    """A layer that multiplies in fp8, and the weight that it stands for."""
    stored = Fp8Format(torch.bfloat16).encode(wide(rows, cols))
    bias = torch.randn(rows).bfloat16()
    return Fp8Linear(stored["weight"], stored["scale"], bias), Fp8Format(torch.bfloat16).decode(stored)


def test_the_product_in_fp8_is_that_of_the_quantized_rows() -> None:
    layer, weight = fp8_linear(32, 64)
    x = torch.randn(1, 9, 64).bfloat16()
    values, scale = quantize_fp8_rows(x[0])
    expected = (values.float() * scale) @ weight.t() + layer.bias.float()
    out = torch.empty(1, 9, 48, dtype=torch.bfloat16)[:, :, 8:40]
    layer.into(layer.input(x), out)
    assert (out[0].float() - expected).norm() <= 2**-8 * expected.norm()
    residual, gate = torch.randn(1, 9, 32).bfloat16(), torch.randn(1, 32).bfloat16()
    expected = residual[0].float() + gate.float() * expected
    layer.add_gated(layer.input(x), residual, gate)
    assert (residual[0].float() - expected).norm() <= 2**-7 * expected.norm()


def test_rows_of_fp8_layers_and_activations_slice_as_tensors_do() -> None:
    layer, _ = fp8_linear(32, 64)
    x = torch.randn(1, 9, 64).bfloat16()
    whole, part = (torch.empty(1, 9, count, dtype=torch.bfloat16) for count in (32, 16))
    layer.into(layer.input(x), whole, gelu=True)
    layer.rows(16).into(layer.input(x), part, gelu=True)
    assert torch.equal(part, whole[:, :, 16:])
    part = torch.empty(1, 3, 32, dtype=torch.bfloat16)
    layer.into(layer.input(x)[:, 2:5], part, gelu=True)
    assert torch.equal(part, whole[:, 2:5])


def test_nf4_needs_whole_blocks() -> None:
    with pytest.raises(
        ValueError, match="nf4 needs layers whose inputs are a multiple of 64, got 96; use int8"
    ):
        FORMATS[1].storage(8, 96)


# What bitsandbytes 0.50.2 makes of ``waves()``: quantize_4bit(..., blocksize=64, quant_type="nf4").
BITSANDBYTES_CODES = bytes.fromhex(
    "79dfe30ea1f0f1ad13eec979ced31d91e1e29d13cec989cec32c82d2d38c23bdecacefd11e72e0e26e21beecbceea12e"
    "54d1d45e329ddcccdd825d46b3b64d626effeffe507f19a4991e813ceeeeeb31ad1b676c1cb228cdddc723ca2c4a4c29"
    "f204beeea304f71f1e1f15e61169a95119e34e1e1d52db313554214cc28a2c3a"
)
BITSANDBYTES_SCALES = (0.9312769770622253, 0.5015402436256409, 0.27242311835289, 0.13871023058891296)


def waves() -> Tensor:
    """A weight [2, 128] of four blocks that get smaller."""
    i = torch.arange(256, dtype=torch.float64)
    return (torch.sin(i * i / 7) * torch.exp(-i / 100)).float().reshape(2, 128)


def test_nf4_is_that_of_bitsandbytes() -> None:
    packed, scale = encode_nf4(waves())
    assert packed.numpy().tobytes() == BITSANDBYTES_CODES
    assert scale.flatten().tolist() == pytest.approx(BITSANDBYTES_SCALES, rel=1e-6)


def test_nf4_is_that_of_the_installed_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = wide(16, 128)
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    ours, scale = encode_nf4(weight)
    assert torch.equal(ours.flatten(), packed.flatten())
    assert torch.equal(scale.flatten(), state.absmax)
    expanded = torch.empty_like(weight)
    decode_nf4(ours, scale, expanded)
    torch.testing.assert_close(expanded, functional.dequantize_4bit(packed, state), rtol=1e-6, atol=0)
