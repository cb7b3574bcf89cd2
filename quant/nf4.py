"""4-bit NormalFloat weights (NF4, as bitsandbytes stores them), in blocks of 64 along a row; expanded to multiply.

Reading and writing need no bitsandbytes: the code book and the packing are its own (Dettmers et al., QLoRA, 2023, E).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .dense import Linear
from .formats import StoredTensor

BLOCK = 64
# Quantiles of the normal distribution, scaled to [-1, 1].
CODES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
# Rows that are expanded at a time: indices take eight times the memory of the codes.
_ROWS = 512


def encode_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest codes of ``weight`` over the largest value of its block.

    Args:
        weight: [N, K], floating point; K a multiple of 64.

    Returns:
        ``(packed, scale)``: uint8 [N, K / 2], the earlier value in the upper half of a byte, and fp32 [N, K / 64].
    """
    blocks = weight.float().unflatten(1, (-1, BLOCK))
    scale = blocks.abs().amax(dim=2)
    codes = torch.tensor(CODES, device=weight.device)
    nearest = torch.bucketize(blocks / scale.clamp_min(1e-38)[..., None], (codes[1:] + codes[:-1]) / 2)
    pairs = nearest.to(torch.uint8).flatten(1).unflatten(1, (-1, 2))
    return pairs[..., 0] << 4 | pairs[..., 1], scale


def decode_nf4(packed: Tensor, scale: Tensor, out: Tensor) -> None:
    """Write the weight [N, K] that ``packed`` and ``scale`` stand for to ``out``, rounded once to its dtype."""
    codes = torch.tensor(CODES, device=packed.device)
    for part, part_scale, part_out in zip(
        packed.split(_ROWS), scale.split(_ROWS), out.split(_ROWS), strict=True
    ):
        indices = torch.stack((part >> 4, part & 15), dim=2).flatten(1).int()
        values = codes[indices].unflatten(1, (-1, BLOCK)) * part_scale[..., None]
        part_out.copy_(values.flatten(1))


@dataclass(frozen=True, slots=True)
class PackedNf4Linear:
    """An NF4 weight that is expanded to ``dtype`` when its block computes.

    Attributes:
        weight: uint8 [N, K / 2].
        scale: fp32 [N, K / 64].
        bias: [N].
        dtype: of the product.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    dtype: torch.dtype

    def unpacked(self) -> Linear:
        rows, half = self.weight.shape
        weight = torch.empty((rows, 2 * half), dtype=self.dtype, device=self.weight.device)
        decode_nf4(self.weight, self.scale, weight)
        return Linear(weight, self.bias)


@dataclass(frozen=True, slots=True)
class Nf4Format:
    """``precision="nf4"``: 4.5 bits a weight, multiplied in ``dtype`` (approximate)."""

    dtype: torch.dtype
    name = "nf4"

    def storage(self, rows: int, cols: int, split: int = 0) -> dict[str, StoredTensor]:
        if cols % BLOCK:
            raise ValueError(f"nf4 needs layers whose inputs are a multiple of {BLOCK}, got {cols}; use int8")
        return {
            "weight": StoredTensor((rows, cols // 2), torch.uint8),
            "scale": StoredTensor((rows, cols // BLOCK), torch.float32),
        }

    def encode(self, weight: Tensor, split: int = 0) -> dict[str, Tensor]:
        packed, scale = encode_nf4(weight)
        return {"weight": packed, "scale": scale}

    def decode(self, stored: Mapping[str, Tensor], split: int = 0) -> Tensor:
        packed = stored["weight"]
        weight = torch.empty((packed.shape[0], 2 * packed.shape[1]), device=packed.device)
        decode_nf4(packed, stored["scale"], weight)
        return weight

    def layer(self, stored: Mapping[str, Tensor], bias: Tensor, split: int = 0) -> PackedNf4Linear:
        return PackedNf4Linear(stored["weight"], stored["scale"], bias, self.dtype)
