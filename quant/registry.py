"""Weight formats by the name of a precision."""

import torch

from .dense import DenseFormat
from .formats import WeightFormat

DENSE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = tuple(DENSE_DTYPES)


def make_format(precision: str, dtype: torch.dtype) -> WeightFormat:
    """The format called ``precision``; a floating-point one has its own dtype, others compute in ``dtype``.

    Raises:
        ValueError: there is no such precision.
    """
    if precision in DENSE_DTYPES:
        return DenseFormat(DENSE_DTYPES[precision])
    raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
