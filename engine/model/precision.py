"""What a linear layer is in a unit, and how many bytes it takes in every precision; nothing here needs torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..request.config import check_choice

# Every tensor of a blob starts at a multiple of this, which suits vector loads on any device.
TENSOR_ALIGNMENT = 256
# Blobs are whole pages, so that they can be read around the page cache.
BLOB_ALIGNMENT = 4096


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
    """Weights that are used together; ``name`` tells them from those of other units."""

    name: str
    layers: tuple[LayerSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bytes of a value by what it is for.

    Attributes:
        name: as in a configuration.
        weight: of a unit's weight; a fraction where two share a byte.
        block: weights that share one fp32 scale; 0 for a scale per output row, None for none.
        has_ranges: whether two ranges of a layer's inputs have scales of their own.
        activation: between the residual stream and the products.
        residual: in the residual stream and in all that is computed once.
        is_quantized: a product's input is quantized to one byte a value.
        is_fused: norms quantize at once, and products are added to the residual stream where they are computed.
        is_expanded: the weights of a block are expanded to the activations' dtype before it runs.
    """

    name: str
    weight: float
    block: int | None
    has_ranges: bool = False
    activation: int = 2
    residual: int = 2
    is_quantized: bool = False
    is_fused: bool = False
    is_expanded: bool = False

    def unit_bytes(self, unit: UnitSpec) -> int:
        """Size of the unit's blob, which is that of its :class:`~isoframe.engine.model.units.UnitLayout`."""
        tensors = (align(size, TENSOR_ALIGNMENT) for layer in unit.layers for size in self._tensors(layer))
        return align(sum(tensors), BLOB_ALIGNMENT)

    def _tensors(self, layer: LayerSpec) -> Iterator[int]:
        """Bytes of the weight, its scales and the bias."""
        rows = layer.out_features
        yield int(rows * layer.in_features * self.weight)
        if self.block is not None:
            ranges = 2 if layer.split and self.has_ranges else 1
            yield 4 * rows * (layer.in_features // self.block if self.block else ranges)
        yield rows * self.activation


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision(name="fp32", weight=4, block=None, activation=4, residual=4),
        Precision(name="bf16", weight=2, block=None),
        Precision(name="fp16", weight=2, block=None, residual=4),
        Precision(name="int8", weight=1, block=0, has_ranges=True, is_quantized=True, is_fused=True),
        Precision(name="int8-weight", weight=1, block=0, has_ranges=True, is_expanded=True),
        Precision(name="fp8", weight=1, block=0, is_quantized=True),
        Precision(name="nf4", weight=0.5, block=64, is_expanded=True),
    )
}


def find_precision(name: str, compute_dtype: str = "bf16") -> Precision:
    """The precision called ``name``; one that does not fix the activations' dtype computes in ``compute_dtype``.

    Raises:
        ConfigError: there is no such precision.
    """
    check_choice("precision", name, PRECISIONS)
    if PRECISIONS[name].block is None:
        return PRECISIONS[name]
    computed = PRECISIONS[compute_dtype]
    return replace(PRECISIONS[name], activation=computed.activation, residual=computed.residual)


def align(size: int, alignment: int) -> int:
    """``size`` rounded up to a multiple of ``alignment``."""
    return -(-size // alignment) * alignment
