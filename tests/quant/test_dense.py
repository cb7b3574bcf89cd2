import pytest
import torch

from isoframe.engine.request.config import PRECISIONS as CONFIGURED
from isoframe.quant import PRECISIONS, DenseFormat, make_format


def test_weights_beyond_the_range_of_fp16_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 65504 in fp16, got 7e\\+04; use bf16"):
        DenseFormat(torch.float16).encode(torch.tensor([[1.0, -7e4]]))


def test_every_configured_precision_has_a_format_of_its_name() -> None:
    assert CONFIGURED == PRECISIONS
    assert [make_format(name, torch.float32).name for name in PRECISIONS] == list(PRECISIONS)
