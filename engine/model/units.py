"""The blocks' weights as units: one contiguous blob each, all of about the same size, in execution order.

A dual-stream block is two units (latent stream, condition stream), a single-stream block is one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ...quant import Projection, StoredLayer, StoredTensor, WeightFormat
from ..checkpoints.destinations import DenseTensor, Destination, EncodedWeight
from ..families.framepack.transformer_config import TransformerConfig

# Every tensor of a blob starts at a multiple of this, which suits vector loads on any device.
_TENSOR_ALIGNMENT = 256
# Blobs are whole pages, so that they can be read around the page cache.
_BLOB_ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One linear layer of a unit.

    Attributes:
        name: in the unit.
        sources: names of the checkpoint's layers that are stacked along the output.
        rows: output rows of each of them.
        in_features: inputs.
        split: inputs of the first of two ranges that 8-bit formats scale apart; 0 for one range.
    """

    name: str
    sources: tuple[str, ...]
    rows: tuple[int, ...]
    in_features: int
    split: int = 0

    @property
    def out_features(self) -> int:
        return sum(self.rows)


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """Weights that are used together: ``name`` is their prefix in the checkpoint and, of a stream, its name."""

    name: str
    layers: tuple[LayerSpec, ...]


def unit_specs(config: TransformerConfig) -> tuple[UnitSpec, ...]:
    """All units of a transformer in execution order."""
    dual = [
        _stream(config, block, stream)
        for block in range(config.num_layers)
        for stream in ("latent", "condition")
    ]
    return (*dual, *(_single(config, block) for block in range(config.num_single_layers)))


def _stream(config: TransformerConfig, block: int, stream: str) -> UnitSpec:
    prefix = f"transformer_blocks.{block}"
    qkv, out, mlp = {
        "latent": (("to_q", "to_k", "to_v"), "to_out.0", "ff"),
        "condition": (("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context"),
    }[stream]
    dim, mlp_dim = config.inner_dim, int(config.inner_dim * config.mlp_ratio)
    return UnitSpec(
        f"{prefix}.{stream}",
        (
            LayerSpec("qkv", tuple(f"{prefix}.attn.{part}" for part in qkv), (dim,) * 3, dim),
            LayerSpec("out", (f"{prefix}.attn.{out}",), (dim,), dim),
            LayerSpec("mlp_in", (f"{prefix}.{mlp}.net.0.proj",), (mlp_dim,), dim),
            LayerSpec("mlp_out", (f"{prefix}.{mlp}.net.2",), (dim,), mlp_dim),
        ),
    )


def _single(config: TransformerConfig, block: int) -> UnitSpec:
    prefix = f"single_transformer_blocks.{block}"
    dim, mlp_dim = config.inner_dim, int(config.inner_dim * config.mlp_ratio)
    inputs = (*(f"{prefix}.attn.to_{part}" for part in "qkv"), f"{prefix}.proj_mlp")
    return UnitSpec(
        prefix,
        (
            LayerSpec("qkv_mlp", inputs, (dim, dim, dim, mlp_dim), dim),
            LayerSpec("out", (f"{prefix}.proj_out",), (dim,), dim + mlp_dim, split=dim),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Place:
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
        self._places: dict[str, dict[str, _Place]] = {}
        offset = 0
        for layer in spec.layers:
            stored = weight_format.storage(layer.out_features, layer.in_features, layer.split)
            stored["bias"] = StoredTensor((layer.out_features,), weight_format.dtype)
            self._places[layer.name] = {}
            for name, tensor in stored.items():
                self._places[layer.name][name] = _Place(offset, tensor)
                offset = _align(offset + math.prod(tensor.shape) * tensor.dtype.itemsize, _TENSOR_ALIGNMENT)
        self.num_bytes = _align(offset, _BLOB_ALIGNMENT)

    def tensors(self, blob: Tensor) -> dict[str, dict[str, Tensor]]:
        """Views of ``blob`` (uint8, at least num_bytes): layer name -> tensor name -> tensor, bias included."""
        return {
            layer: {name: place.view(blob) for name, place in places.items()}
            for layer, places in self._places.items()
        }

    def describe(self) -> dict[str, dict[str, object]]:
        """Offset, shape and dtype of every tensor, named ``layer.tensor``, as JSON has them."""
        return {
            f"{layer}.{name}": {
                "offset": place.offset,
                "shape": list(place.tensor.shape),
                "dtype": str(place.tensor.dtype).removeprefix("torch."),
            }
            for layer, places in self._places.items()
            for name, place in places.items()
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
                name: tensors[name].narrow(place.tensor.row_axis, start, count)
                for name, place in self._places[layer.name].items()
            }
            bias = views.pop("bias")
            weight = EncodedWeight(
                shape=(count, layer.in_features),
                views=views,
                row_axes={name: self._places[layer.name][name].tensor.row_axis for name in views},
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
        """Its memory may be overwritten once the work that was issued so far is done."""
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


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
