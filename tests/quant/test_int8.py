import pytest
import torch

from isoframe.quant import dequantize_rowwise, quantize_rowwise


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
