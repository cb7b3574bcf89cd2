"""Every Triton kernel against the reference: compiled on a GPU, under the interpreter elsewhere.

Left out where no kernel can be launched; see conftest.py.
"""

import pytest
import torch
from kernel_cases import DEVICE, cases, is_launchable, strided_inputs

from isoframe.bench.meters.accuracy import find_errors, run
from isoframe.kernels import KERNELS, KernelSpec

pytestmark = pytest.mark.launches

STRIDED = [
    pytest.param(spec, dtype, id=f"{name}-{dtype}".replace("torch.", ""))
    for name, spec in KERNELS.items()
    for dtype in spec.max_error
    if spec.strided and is_launchable(dtype)
]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("spec", "shape", "dtype"), cases(launched=True))
def test_kernel_matches_reference(spec: KernelSpec, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    args = spec.make_inputs(shape, dtype, DEVICE)
    actual, expected = run(spec.launch, args, spec.mutates), run(spec.reference, args, spec.mutates)
    assert find_errors(spec, dtype, actual, expected) == []


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("spec", "dtype"), STRIDED)
def test_kernel_takes_strided_rows(spec: KernelSpec, dtype: torch.dtype) -> None:
    args = strided_inputs(spec, spec.test_shapes[-1], dtype)
    actual, expected = run(spec.launch, args, spec.mutates), run(spec.reference, args, spec.mutates)
    assert find_errors(spec, dtype, actual, expected) == []
