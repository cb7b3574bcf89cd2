"""Every registered operation against its reference."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from isoframe.kernels import KERNELS, KernelSpec

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    pytest.param(spec, shape, dtype, id=f"{spec.name}-{'x'.join(map(str, shape))}-{str(dtype).split('.')[1]}")
    for spec in KERNELS.values()
    for shape in spec.test_shapes
    for dtype in spec.max_error
]
TRITON_CASES = [
    case
    for case in CASES
    # The interpreter's bf16 arithmetic is wrong, not merely rounded.
    if case.values[0].launch is not None and not (INTERPRET and case.values[2] == torch.bfloat16)
]


def relative_rms(actual: torch.Tensor, expected: torch.Tensor) -> float:
    error = (actual.double() - expected.double()).square().mean().sqrt()
    return float(error / expected.double().square().mean().sqrt())


def run(function: Callable[..., Any], args: tuple[Any, ...], mutates: tuple[int, ...]) -> list[torch.Tensor]:
    """The tensors that ``function`` returns or writes; ``args`` stay as they are."""
    args = tuple(arg.clone() if i in mutates else arg for i, arg in enumerate(args))
    result = function(*args)
    assert (result is None) == bool(mutates)
    return [args[i] for i in mutates] if mutates else [result]


def assert_matches_reference(
    spec: KernelSpec, function: Callable[..., Any], args: tuple[Any, ...], dtype: torch.dtype
) -> None:
    for actual, expected in zip(
        run(function, args, spec.mutates), run(spec.reference, args, spec.mutates), strict=True
    ):
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        assert relative_rms(actual, expected) <= spec.max_error[dtype]


@pytest.mark.parametrize(("spec", "shape", "dtype"), CASES)
@pytest.mark.usefixtures("poisoned_empty")
def test_operator_matches_reference(spec: KernelSpec, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_matches_reference(spec, spec.op, spec.make_inputs(shape, dtype, DEVICE), dtype)


@pytest.mark.skipif(not INTERPRET and DEVICE.type == "cpu", reason="needs a GPU or TRITON_INTERPRET=1")
@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize(("spec", "shape", "dtype"), TRITON_CASES)
def test_triton_matches_reference(spec: KernelSpec, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert spec.launch is not None
    assert_matches_reference(spec, spec.launch, spec.make_inputs(shape, dtype, DEVICE), dtype)


@pytest.mark.parametrize("spec", KERNELS.values(), ids=list(KERNELS))
def test_operator_contract(spec: KernelSpec) -> None:
    args = spec.make_inputs(spec.test_shapes[0], torch.float32, DEVICE)
    operator = getattr(torch.ops.isoframe, spec.name).default
    torch.library.opcheck(operator, args)


@pytest.mark.parametrize("device", ["meta", DEVICE.type])
def test_shape_error_names_the_argument(device: str) -> None:
    x, bad = torch.zeros(1, 2, 8, device=device), torch.zeros(1, 4, device=device)
    with pytest.raises(ValueError, match=r"scale must be \[B, D\] = \(1, 8\), got \(1, 4\)"):
        KERNELS["modulated_layer_norm"].op(x, bad, bad)


def test_patchify_writes_only_its_rows() -> None:
    latents, weight, bias, packed, offset = KERNELS["patchify_pack"].make_inputs(
        (1, 16, 3, 6, 10, 1, 2, 24), torch.float32, DEVICE
    )
    packed.fill_(7.0)
    KERNELS["patchify_pack"].op(latents, weight, bias, packed, offset)
    assert bool((packed[:, :offset] == 7).all())
    assert bool((packed[:, offset + 45 :] == 7).all())
    assert not bool((packed[:, offset : offset + 45] == 7).any())
