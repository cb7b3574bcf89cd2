"""Weight formats by the name of a precision."""

from collections.abc import Callable

import torch

from .dense import DenseFormat
from .formats import WeightFormat
from .fp8 import Fp8Format
from .int8 import Int8Format, Int8WeightFormat
from .nf4 import Nf4Format

DENSE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FORMATS: dict[str, Callable[[torch.dtype], WeightFormat]] = {
    "int8": Int8Format,
    "int8-weight": Int8WeightFormat,
    "fp8": Fp8Format,
    "nf4": Nf4Format,
}
PRECISIONS = (*DENSE_DTYPES, *_FORMATS)


def make_format(precision: str, dtype: torch.dtype) -> WeightFormat:
    """The format called ``precision``; a floating-point one has its own dtype, others compute in ``dtype``.

    Raises:
        ValueError: there is no such precision.
    """
    if precision in DENSE_DTYPES:
        return DenseFormat(DENSE_DTYPES[precision])
    if precision in _FORMATS:
        return _FORMATS[precision](dtype)
    raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
