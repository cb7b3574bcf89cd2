"""Memory traffic of one denoising step by accounting: what each dispatched operation reads and writes.

Runs on meta tensors, so that the 13B model needs no memory and no GPU. Every tensor argument counts as read once, every
result as written once, an argument that is updated in place as both; views and allocations are free. Operands of
matrix products and of attention are left out: they are the same for every implementation of the model. Caches are not
modelled, so the sum is what leaves and enters the arithmetic, an upper bound of what reaches DRAM.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...engine.model.attention_choice import CANDIDATES
from ...quant import make_format
from ..subjects.random_model import allocate_transformer
from ..subjects.single_step import (
    MODEL_13B,
    SHAPE_640X608,
    diffusers_model,
    diffusers_step,
    draw_inputs,
    isoframe_step,
)

_META = torch.device("meta")
_PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "_int_mm")}
_OWN_PRODUCTS = ("isoframe::int8_linear", "isoframe::int8_attention")
_ALLOCATIONS = {
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted")
}
# A view that its schema does not call one.
_VIEWS = {"aten::_unsafe_view"}
# They write an argument without reading it.
_OVERWRITING = {"aten::copy_", "aten::fill_", "aten::zero_"}

# The largest accepted traffic of one step at 640x608, in bytes.
LIMITS = {"bf16": 150e9, "int8": 110e9}
# What an independent count of the eager program gives; the counter must find it to be believed.
DIFFUSERS_BYTES, DIFFUSERS_TOLERANCE = 848e9, 0.1


@dataclass(frozen=True, slots=True)
class Mover:
    """All calls of one operation.

    Attributes:
        name: of the operation.
        num_calls: how often it ran.
        num_bytes: read and written by all calls.
    """

    name: str
    num_calls: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Traffic of one step.

    Attributes:
        movers: by bytes, largest first.
        product_bytes: operands of matrix products and of attention, which no mover counts.
    """

    movers: tuple[Mover, ...]
    product_bytes: int

    @property
    def num_bytes(self) -> int:
        """Read and written by everything else."""
        return sum(mover.num_bytes for mover in self.movers)


class TrafficCounter(TorchDispatchMode):
    """Counts what the operations inside the block read and write.

    A registered operation of ours is one operation; what its CPU path would do inside does not run on meta tensors.
    """

    def __init__(self, item: int | None = None) -> None:
        """Start at zero; ``item`` is what ``.item()`` of a meta tensor returns."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class is untyped
        self._item = item
        self._calls: defaultdict[str, int] = defaultdict(int)
        self._bytes: defaultdict[str, int] = defaultdict(int)
        self._product_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::_local_scalar_dense" and self._item is not None:
            return self._item
        result = func(*args, **kwargs)
        is_free = func.is_view or name in _VIEWS | _ALLOCATIONS
        moved = 0 if is_free else _moved_bytes(func, args, kwargs, result)
        if name in _PRODUCTS or name.startswith(_OWN_PRODUCTS):
            self._product_bytes += moved
        elif moved:
            self._calls[name] += 1
            self._bytes[name] += moved
        return result

    def traffic(self) -> Traffic:
        """What was counted so far."""
        movers = [Mover(name, self._calls[name], self._bytes[name]) for name in self._bytes]
        movers.sort(key=lambda mover: -mover.num_bytes)
        return Traffic(tuple(movers), self._product_bytes)


class OpaqueAttention(TorchFunctionMode):
    """Replaces torch's attention by its result's shape: on meta tensors it would fall apart into products."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            # Fused kernels keep the order of the axes in memory.
            query: Tensor = args[0] if args else (kwargs or {})["query"]
            return torch.empty_like(query)
        return func(*args, **(kwargs or {}))


def measure_isoframe(precision: str = "bf16") -> Traffic:
    """One step of our transformer at the 13B shape, 640x608; ``precision`` is one of :data:`LIMITS`."""
    weight_format = make_format(precision, torch.bfloat16)
    transformer = allocate_transformer(MODEL_13B, weight_format, _META)
    attention = CANDIDATES["int8" if precision == "int8" else "sdpa"].make()
    inputs = draw_inputs(MODEL_13B, SHAPE_640X608, transformer.dtype, _META)
    step, _ = isoframe_step(transformer, inputs, attention)
    # The first step of a section also takes the mean of its keys, which later steps find.
    step()
    return _count(step)


def measure_diffusers() -> Traffic:
    """One step of diffusers' class in bf16 at the same shape."""
    model = diffusers_model(MODEL_13B, torch.bfloat16, _META)
    inputs = draw_inputs(MODEL_13B, SHAPE_640X608, torch.bfloat16, _META)
    # The class asks the mask how many condition tokens are valid.
    num_condition_tokens = SHAPE_640X608.num_text_tokens + SHAPE_640X608.num_image_tokens
    return _count(diffusers_step(model, inputs), item=num_condition_tokens)


def _count(step: Callable[[], Tensor], item: int | None = None) -> Traffic:
    # In inference mode composite operations would arrive whole, views among them.
    with torch.no_grad(), TrafficCounter(item) as counter, OpaqueAttention():
        step()
    traffic: Traffic = counter.traffic()
    return traffic


def _moved_bytes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Bytes that one call reads and writes."""
    total, written = 0, set()
    for argument, value in _arguments(func, args, kwargs):
        tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        is_read = not is_written or not (argument.kwarg_only or func._schema.name in _OVERWRITING)
        total += sum(tensor_bytes(tensor) for tensor in tensors) * (is_written + is_read)
        if is_written:
            written |= {id(tensor) for tensor in tensors}
    results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and id(leaf) not in written]
    return total + sum(tensor_bytes(tensor) for tensor in results)


def _arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The given arguments, each with its entry in the schema."""
    schema = func._schema.arguments
    yield from zip(schema, args, strict=False)
    by_name = {argument.name: argument for argument in schema}
    yield from ((by_name[name], value) for name, value in kwargs.items())


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes behind a tensor; an axis of stride 0 repeats the same ones."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.element_size()
