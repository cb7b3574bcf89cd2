import pytest
import torch

from isoframe.quant import (
    DenseFormat,
    Int8Format,
    Int8WeightFormat,
    WeightFormat,
    dequantize_rowwise,
    quantize_rowwise,
)


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (16, 128)])
def test_error_is_at_most_half_a_step(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape) * torch.logspace(-3, 3, shape[0]).unsqueeze(1)
    qweight, scale = quantize_rowwise(weight)
    error = (dequantize_rowwise(qweight, scale, torch.float32) - weight).abs()
    assert (error <= 0.501 * scale).all()


def test_largest_value_of_each_row_uses_the_whole_range() -> None:
    qweight, _ = quantize_rowwise(torch.randn(5, 64))
    assert qweight.abs().amax(dim=1).tolist() == [127] * 5


def test_zero_row_stays_zero() -> None:
    qweight, scale = quantize_rowwise(torch.zeros(2, 3))
    assert scale.tolist() == [[1.0], [1.0]]
    assert not dequantize_rowwise(qweight, scale, torch.bfloat16).any()


FORMATS = [Int8Format(torch.float32), Int8WeightFormat(torch.float32)]


def encoded(weight_format: WeightFormat, weight: torch.Tensor, split: int) -> dict[str, torch.Tensor]:
    """Stored tensors as a unit holds them."""
    stored = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype)
        for name, tensor in weight_format.storage(*weight.shape, split).items()
    }
    for name, tensor in weight_format.encode(weight, split).items():
        stored[name].copy_(tensor)
    return stored


@pytest.mark.parametrize("split", [0, 16])
@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f.name)
def test_a_layer_multiplies_by_the_weight_that_its_storage_stands_for(
    weight_format: WeightFormat, split: int
) -> None:
    weight, bias, x = torch.randn(24, 48), torch.randn(24), torch.randn(1, 7, 48)
    weight[:, :split] *= 100
    stored = encoded(weight_format, weight, split)
    layer = weight_format.layer(stored, bias, split).unpacked()
    out = torch.empty(1, 7, 24)
    layer.into(layer.input(x), out)
    expected = x @ weight_format.decode(stored, split).t() + bias
    # int8 rounds x too: half a step of 127 of its largest value.
    limit = 1e-6 if weight_format.name == "int8-weight" else 0.01
    assert (out - expected).norm() <= limit * expected.norm()


@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f.name)
def test_rows_are_encoded_apart(weight_format: WeightFormat) -> None:
    weight = torch.randn(24, 48)
    whole, part = weight_format.encode(weight, 16), weight_format.encode(weight[5:9], 16)
    for name, tensor in weight_format.storage(24, 48, 16).items():
        assert torch.equal(whole[name].narrow(tensor.row_axis, 5, 4), part[name])


def test_weight_only_int8_equals_the_product_with_expanded_weights_bit_for_bit() -> None:
    weight, bias, x = torch.randn(24, 48), torch.randn(24).bfloat16(), torch.randn(1, 7, 48).bfloat16()
    weight_format = Int8WeightFormat(torch.bfloat16)
    stored = encoded(weight_format, weight, 0)
    layer = weight_format.layer(stored, bias).unpacked()
    expanded = DenseFormat(torch.bfloat16).encode(weight_format.decode(stored))
    expected = DenseFormat(torch.bfloat16).layer(expanded, bias)
    results = []
    for linear in (layer, expected):
        results.append(torch.empty(1, 7, 24, dtype=torch.bfloat16))
        linear.into(linear.input(x), results[-1], gelu=True)
    assert torch.equal(*results)


def test_quantized_rows_slice_as_tensors_do() -> None:
    layer = Int8Format(torch.float32).layer(encoded(FORMATS[0], torch.randn(8, 48), 16), torch.zeros(8), 16)
    x = torch.randn(1, 9, 48)
    part, whole = layer.input(x[:, 2:5]), layer.input(x)[:, 2:5]
    assert torch.equal(part.values, whole.values)
    assert torch.equal(part.scale, whole.scale)
