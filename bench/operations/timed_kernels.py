"""What ``bench gpu`` runs for each kernel: the operation, its reference, and what libraries offer in its place."""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from ...kernels import KERNELS, KernelSpec
from ..meters.accuracy import run
from ..meters.traffic import tensor_bytes

Arguments = Mapping[str, Any]
Ceiling = Literal["copy", "bf16", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """One kernel at one shape of the real model.

    Attributes:
        spec: operation.
        shape: one of its bench shapes.
    """

    spec: KernelSpec
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the drawn tensors: bf16 as in the model, or the first that an operation without bf16 takes."""
        limits = self.spec.max_error
        return torch.bfloat16 if torch.bfloat16 in limits else next(iter(limits))

    def draw(self, device: torch.device) -> tuple[Any, ...]:
        """Random positional arguments of the operation at this shape."""
        return self.spec.make_inputs(self.shape, self.dtype, device)

    def name_arguments(self, args: tuple[Any, ...]) -> Arguments:
        """``args`` by the names that the operation gives them."""
        return inspect.signature(self.spec.reference).bind(*args).arguments


@dataclass(frozen=True, slots=True)
class Work:
    """The least that a case must do, and what limits how fast.

    Attributes:
        amount: bytes moved, or operations of the matrix products (a multiply-add is two).
        ceiling: "copy" (bandwidth of a device-to-device copy), or the rate of bf16 or int8 products.
    """

    amount: float
    ceiling: Ceiling

    def share(self, seconds: float, ceilings: Mapping[str, float]) -> float:
        """Part of the measured ceiling that ``seconds`` reach."""
        return self.amount / seconds / ceilings[self.ceiling]


def gpu_cases(capability: int) -> Iterator[KernelCase]:
    """Every kernel that runs on the compute capability ``capability``, at every bench shape."""
    for spec in KERNELS.values():
        if capability >= min(spec.archs):
            yield from (KernelCase(spec=spec, shape=shape) for shape in spec.bench_shapes)


def count_work(case: KernelCase, args: tuple[Any, ...]) -> Work:
    """Work of ``case`` on ``args``; an argument that holds nothing but NaN is written and not read."""
    named = case.name_arguments(args)
    if case.spec.name.startswith("int8_linear"):
        rows, depth = named["values"].shape[:-1].numel(), named["weight"].shape[1]
        return Work(2.0 * rows * depth * named["weight"].shape[0], "int8")
    if case.spec.name.startswith("int8_attention"):
        batch, num_queries, num_heads, head_dim = named["out"].shape
        return Work(4.0 * batch * num_heads * num_queries * named["k8"].shape[1] * head_dim, "bf16")
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    read = sum(tensor_bytes(tensor) for tensor in tensors if not _is_blank(tensor))
    results = run(case.spec.op, case.draw(torch.device("meta")), case.spec.mutates)
    return Work(float(read + sum(tensor_bytes(result) for result in results)), "copy")


def _is_blank(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isnan().all())


def library_calls(case: KernelCase, args: tuple[Any, ...]) -> dict[str, Callable[[], object]]:
    """What libraries offer for the same step of the model, by name."""
    for prefix, make_calls in _LIBRARIES.items():
        if case.spec.name.startswith(prefix):
            return make_calls(case, case.name_arguments(args))
    return {}


def _linear_calls(case: KernelCase, named: Arguments) -> dict[str, Callable[[], object]]:
    values, weight = named["values"].flatten(0, 1), named["weight"]
    x, w, bias = values.to(case.dtype), weight.to(case.dtype), named["bias"]
    calls: dict[str, Callable[[], object]] = {"cuBLAS": lambda: linear(x, w, bias)}
    # Its int8 product takes sizes in multiples of 8 alone.
    if not (weight.shape[0] % 8 or weight.shape[1] % 8):
        calls["torch._int_mm"] = lambda: torch._int_mm(values, weight.t())
    return calls


def _attention_calls(case: KernelCase, named: Arguments) -> dict[str, Callable[[], object]]:
    v = named["v"].to(case.dtype)
    q = named["q8"][:, named["first_query"] :][:, : named["out"].shape[1]].to(case.dtype)
    k = named["k8"].to(case.dtype)
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    calls: dict[str, Callable[[], object]] = {"SDPA": lambda: scaled_dot_product_attention(*heads)}
    try:
        sageattn = importlib.import_module("sageattention").sageattn
    except ImportError:
        return calls
    # Version 1 subtracts the mean from the caller's k, which changes the values and not the time.
    calls["sageattention"] = lambda: sageattn(q, k, v, tensor_layout="NHD", is_causal=False)
    return calls


def _norm_calls(case: KernelCase, named: Arguments) -> dict[str, Callable[[], object]]:
    x, scale, shift = named["x"], named["scale"][0], named["shift"][0]
    return {"torch layer_norm": lambda: layer_norm(x, x.shape[-1:], scale, shift)}


_LIBRARIES: dict[str, Callable[[KernelCase, Arguments], dict[str, Callable[[], object]]]] = {
    "int8_linear": _linear_calls,
    "int8_attention": _attention_calls,
    "modulated_layer_norm": _norm_calls,
}
