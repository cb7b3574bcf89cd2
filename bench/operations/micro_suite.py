"""The pieces of :mod:`.micro` as a test module: pytest-benchmark times them, ``--benchmark-disable`` only runs them."""

from typing import Any

import pytest
import torch

from .micro import MicroCase, micro_cases, synchronized

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.mark.parametrize("case", list(micro_cases(DEVICE)), ids=lambda case: case.name)
def test_micro(case: MicroCase, benchmark: Any) -> None:
    benchmark.group = case.group
    benchmark(synchronized(case.make(DEVICE), DEVICE))
