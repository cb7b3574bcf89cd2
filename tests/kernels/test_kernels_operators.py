"""Every registered operation, as the dispatcher runs it on this device, against its reference."""

import inspect
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, SPECS, argument_names, cases, strided_inputs
from torch import Tensor

from isoframe.bench.meters.accuracy import find_errors, relative_rms, run, share_of_flips
from isoframe.kernels import KERNELS, KernelSpec


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("spec", "shape", "dtype"), cases(launched=False))
def test_operator_matches_reference(spec: KernelSpec, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    args = spec.make_inputs(shape, dtype, DEVICE)
    actual, expected = run(spec.op, args, spec.mutates), run(spec.reference, args, spec.mutates)
    assert find_errors(spec, dtype, actual, expected) == []


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("spec", [case for case in SPECS if case.values[0].strided])
def test_operator_takes_strided_rows(spec: KernelSpec) -> None:
    args = strided_inputs(spec, spec.test_shapes[-1], torch.float32)
    assert all(not args[i].is_contiguous() for i in spec.strided)
    actual, expected = run(spec.op, args, spec.mutates), run(spec.reference, args, spec.mutates)
    assert find_errors(spec, torch.float32, actual, expected) == []


@pytest.mark.parametrize("spec", SPECS)
def test_operator_keeps_the_contract_of_custom_operators(spec: KernelSpec) -> None:
    operator = getattr(torch.ops.isoframe, spec.name).default
    torch.library.opcheck(operator, spec.make_inputs(spec.test_shapes[0], torch.float32, DEVICE))


@pytest.mark.parametrize(("spec", "shape", "dtype"), cases(launched=False))
def test_meta_results_have_the_real_shape_and_dtype(
    spec: KernelSpec, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    real, meta = (
        run(spec.op, spec.make_inputs(shape, dtype, device), spec.mutates)
        for device in (DEVICE, torch.device("meta"))
    )
    assert [layout(result) for result in meta] == [layout(result) for result in real]
    assert all(result.is_meta for result in meta)


def layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.stride()


@pytest.mark.parametrize("spec", SPECS)
def test_spec_numbers_its_arguments(spec: KernelSpec) -> None:
    args = spec.make_inputs(spec.test_shapes[0], torch.float32, DEVICE)
    assert len(args) <= len(argument_names(spec))
    assert all(isinstance(args[i], Tensor) for i in (*spec.mutates, *spec.strided))


TENSORS = [
    pytest.param(case.values[0], position, id=f"{case.id}-{argument_names(case.values[0])[position]}")
    for case in SPECS
    for position, arg in enumerate(
        case.values[0].make_inputs(case.values[0].test_shapes[0], torch.float32, torch.device("meta"))
    )
    if isinstance(arg, Tensor)
]
# An argument without company can be on any device.
SHARED = [case for case in TENSORS if sum(other.values[0] is case.values[0] for other in TENSORS) > 1]


def launch_with(spec: KernelSpec, position: int, change: Any) -> None:
    """Call the launcher of ``spec`` with one argument changed."""
    args = list(spec.make_inputs(spec.test_shapes[0], torch.float32, DEVICE))
    args[position] = change(args[position])
    spec.launch(*args)


@pytest.mark.parametrize(("spec", "position"), TENSORS)
def test_launcher_names_the_argument_of_a_wrong_dtype(spec: KernelSpec, position: int) -> None:
    name = argument_names(spec)[position]
    with pytest.raises(ValueError, match=rf"\b{name}\b.* got \S*int64"):
        launch_with(spec, position, lambda tensor: tensor.to(torch.int64))


@pytest.mark.parametrize(("spec", "position"), TENSORS)
def test_launcher_names_the_argument_of_a_wrong_rank(spec: KernelSpec, position: int) -> None:
    name = argument_names(spec)[position]
    with pytest.raises(ValueError, match=rf"^{name} must .* got \(1, "):
        launch_with(spec, position, lambda tensor: tensor.unsqueeze(0))


@pytest.mark.parametrize(("spec", "position"), SHARED)
def test_launcher_names_the_argument_on_another_device(spec: KernelSpec, position: int) -> None:
    name = argument_names(spec)[position]
    with pytest.raises(ValueError, match=rf"(?=.* must be on the device of ).*\b{name}\b"):
        launch_with(spec, position, lambda tensor: tensor.to("meta"))


@pytest.mark.parametrize("spec", SPECS)
def test_launcher_refuses_sizes_that_contradict_each_other(spec: KernelSpec) -> None:
    positions = [case.values[1] for case in TENSORS if case.values[0] is spec]
    if len(positions) > 1:
        with pytest.raises(ValueError, match=r"must .* got"):
            launch_with(spec, positions[-1], lambda tensor: tensor.repeat_interleave(2, dim=-1))


@pytest.mark.parametrize("spec", SPECS)
def test_launcher_takes_what_the_operator_takes(spec: KernelSpec) -> None:
    # The dispatcher leaves out arguments that have their default.
    taken, offered = (
        {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
        for function in (spec.launch, spec.op._init_fn)
    )
    assert list(taken.items()) == list(offered.items())


def test_patches_are_checked_without_rotary_tables_too() -> None:
    spec = KERNELS["patchify_pack"]
    args = spec.make_inputs(spec.test_shapes[0], torch.float32, torch.device("meta"))
    assert spec.op(*args[:5]) is None
    with pytest.raises(ValueError, match="packed must have rows"):
        spec.op(*args[:4], args[3].shape[1])


def test_patchify_writes_only_its_rows() -> None:
    latents, weight, bias, packed, offset, axes, cos, sin = KERNELS["patchify_pack"].make_inputs(
        (1, 16, 3, 6, 10, 1, 2, 24, 1), torch.float32, DEVICE
    )
    written = (packed[0], cos, sin)
    for rows in written:
        rows.fill_(7.0)
    KERNELS["patchify_pack"].op(latents, weight, bias, packed, offset, axes, cos, sin)
    for rows in written:
        assert bool((rows[:offset] == 7).all())
        assert bool((rows[offset + 45 :] == 7).all())
        assert not bool((rows[offset : offset + 45] == 7).any())


def test_error_counts_what_one_side_alone_left_unwritten() -> None:
    nan, ones = torch.tensor([1.0, float("nan")]), torch.ones(2)
    assert relative_rms(nan, nan) == 0
    assert not relative_rms(nan, ones) <= 1
    assert not relative_rms(ones, nan) <= 1
    assert relative_rms(torch.tensor([1.0, 1.1]), ones) == pytest.approx((0.01 / 2) ** 0.5)


def test_integers_may_differ_by_one_and_no_more() -> None:
    expected = torch.tensor([1, 2, 3, 4], dtype=torch.int8)
    assert share_of_flips(expected, expected) == 0
    assert share_of_flips(torch.tensor([1, 2, 3, 5], dtype=torch.int8), expected) == 0.25
    assert share_of_flips(torch.tensor([1, 2, 3, 6], dtype=torch.int8), expected) == 1
