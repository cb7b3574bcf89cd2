"""Units of weights in memory: one contiguous blob each, read from a checkpoint and used as layers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ...quant import Projection, StoredLayer, StoredTensor, WeightFormat
from ..checkpoints.destinations import DenseTensor, Destination, EncodedWeight
from .precision import BLOB_ALIGNMENT, TENSOR_ALIGNMENT, LayerSpec, UnitSpec, align


@dataclass(frozen=True, slots=True)
class _StoredAt:
    """Where one tensor lies in the blob."""

    offset: int
    tensor: StoredTensor

    def view(self, blob: Tensor) -> Tensor:
        size = math.prod(self.tensor.shape) * self.tensor.dtype.itemsize
        return blob[self.offset : self.offset + size].view(self.tensor.dtype).view(self.tensor.shape)


class UnitLayout:
    """Byte layout of one unit in one format.

    Attributes:
        spec: the unit.
        format: of its weights; biases are kept in the format's activation dtype.
        num_bytes: size of the blob, whole pages.
    """

    def __init__(self, spec: UnitSpec, weight_format: WeightFormat) -> None:
        self.spec = spec
        self.format = weight_format
        self._stored: dict[str, dict[str, _StoredAt]] = {}
        offset = 0
        for layer in spec.layers:
            stored = weight_format.storage(layer.out_features, layer.in_features, layer.split)
            stored["bias"] = StoredTensor((layer.out_features,), weight_format.dtype)
            self._stored[layer.name] = {}
            for name, tensor in stored.items():
                self._stored[layer.name][name] = _StoredAt(offset, tensor)
                offset = align(offset + math.prod(tensor.shape) * tensor.dtype.itemsize, TENSOR_ALIGNMENT)
        self.num_bytes = align(offset, BLOB_ALIGNMENT)

    def tensors(self, blob: Tensor) -> dict[str, dict[str, Tensor]]:
        """Views of ``blob`` (uint8, at least num_bytes): layer name -> tensor name -> tensor, bias included."""
        return {
            layer: {name: at.view(blob) for name, at in stored_at.items()}
            for layer, stored_at in self._stored.items()
        }

    def describe(self) -> dict[str, dict[str, object]]:
        """Offset, shape and dtype of every tensor, named ``layer.tensor``, as JSON has them."""
        return {
            f"{layer}.{name}": {
                "offset": at.offset,
                "shape": list(at.tensor.shape),
                "dtype": str(at.tensor.dtype).removeprefix("torch."),
            }
            for layer, stored_at in self._stored.items()
            for name, at in stored_at.items()
        }

    def bind(self, blob: Tensor) -> "Unit":
        """The unit's layers over ``blob``; nothing is copied."""
        tensors = self.tensors(blob)
        layers = {}
        for layer in self.spec.layers:
            bias = tensors[layer.name].pop("bias")
            layers[layer.name] = self.format.layer(tensors[layer.name], bias, layer.split)
        return Unit(layers)

    def destinations(self, blob: Tensor) -> dict[str, Destination]:
        """For every tensor of the checkpoint that belongs to this unit: how to write it into ``blob``."""
        tensors = self.tensors(blob)
        return {
            name: destination
            for layer in self.spec.layers
            for name, destination in self._layer_destinations(layer, tensors[layer.name])
        }

    def _layer_destinations(
        self, layer: LayerSpec, tensors: Mapping[str, Tensor]
    ) -> list[tuple[str, Destination]]:
        found: list[tuple[str, Destination]] = []
        start = 0
        for source, count in zip(layer.sources, layer.rows, strict=True):
            views = {
                name: tensors[name].narrow(at.tensor.row_axis, start, count)
                for name, at in self._stored[layer.name].items()
            }
            bias = views.pop("bias")
            weight = EncodedWeight(
                shape=(count, layer.in_features),
                views=views,
                row_axes={name: self._stored[layer.name][name].tensor.row_axis for name in views},
                encode=partial(self.format.encode, split=layer.split),
                decode=partial(self.format.decode, split=layer.split),
            )
            found += [(f"{source}.weight", weight), (f"{source}.bias", DenseTensor(bias))]
            start += count
        return found


@dataclass(frozen=True, slots=True)
class Unit:
    """The layers of one unit, by name, over memory that someone else owns."""

    layers: Mapping[str, StoredLayer]

    def layer(self, name: str) -> Projection:
        """The layer as it computes. Ask once a block: a format may expand the weights for every call."""
        return self.layers[name].unpacked()


class UnitSource(Protocol):
    """Hands out units in execution order, over and over."""

    def acquire(self, index: int) -> Unit:
        """Unit ``index``, ready to compute with; valid until it is released."""
        ...

    def release(self, index: int) -> None:
        """Let unit ``index`` go: its memory may be overwritten once the work that was issued so far is done."""
        ...


class ResidentUnits:
    """All units in the device's memory."""

    def __init__(
        self, layouts: Sequence[UnitLayout], device: torch.device, blobs: Sequence[Tensor] | None = None
    ) -> None:
        """Allocate the units, or take ``blobs`` (uint8) that already hold them on ``device``."""
        self._layouts = layouts
        self._blobs = blobs or [
            torch.empty(layout.num_bytes, dtype=torch.uint8, device=device) for layout in layouts
        ]
        self._units = [layout.bind(blob) for layout, blob in zip(layouts, self._blobs, strict=True)]

    def destinations(self) -> dict[str, Destination]:
        """Where every tensor of the checkpoint that belongs to a unit goes."""
        return {
            name: destination
            for layout, blob in zip(self._layouts, self._blobs, strict=True)
            for name, destination in layout.destinations(blob).items()
        }

    def acquire(self, index: int) -> Unit:
        return self._units[index]

    def release(self, index: int) -> None:
        """Resident memory is never overwritten."""
