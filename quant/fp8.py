"""fp8 weights (e4m3), one scale per output row: multiplied in fp8 where the card can, else expanded."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import gated_residual, modulated_layer_norm
from .dense import Linear
from .formats import StoredTensor

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max
# Ada, the first with fp8 tensor cores.
_FIRST_CAPABILITY = (8, 9)
# Rows that are expanded at a time: their products take four times the memory of the weight.
_ROWS = 512
# Values that are quantized at a time.
_QUANTIZED_VALUES = 2**22


def quantize_fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize every row of ``x`` to e4m3.

    Args:
        x: [N, K], floating point.

    Returns:
        ``(values, scale)``: e4m3 [N, K] and fp32 [N, 1] with ``x ≈ values * scale``. An all-zero row gets scale 1.
    """
    values = torch.empty(x.shape, dtype=FP8, device=x.device)
    scale = torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)
    # In parts: fp32 copies of all rows would be the largest tensors of a step.
    step = max(_QUANTIZED_VALUES // x.shape[1], 1)
    for part, part_values, part_scale in zip(
        x.split(step), values.split(step), scale.split(step), strict=True
    ):
        absmax = part.abs().amax(dim=1, keepdim=True).float()
        part_scale.copy_(torch.where(absmax > 0, absmax / _LARGEST, torch.ones_like(absmax)))
        # A quotient may round to just above the largest value, which the conversion would turn into NaN.
        part_values.copy_((part.float() / part_scale).clamp_(-_LARGEST, _LARGEST))
    return values, scale


def multiplies_fp8(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of e4m3 with a scale for each row and column run on ``device``; their result is bf16."""
    is_able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY
    return is_able and dtype == torch.bfloat16


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """Rows of an activation in fp8: values e4m3 [1, M, K], scale fp32 [1, M, 1]."""

    values: Tensor
    scale: Tensor

    def __getitem__(self, key: tuple[slice, slice]) -> "Fp8Rows":
        """Rows ``x[:, rows]``."""
        return Fp8Rows(self.values[key], self.scale[key])


@dataclass(frozen=True, slots=True)
class Fp8Linear:
    """e4m3 weight [N, K] times e4m3 activation, fp32 accumulation, bf16 result; scale fp32 [1, N], bias bf16 [N]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    def rows(self, start: int, end: int | None = None) -> "Fp8Linear":
        return Fp8Linear(self.weight[start:end], self.scale[:, start:end], self.bias[start:end])

    def norm_input(self, x: Tensor, scale: Tensor, shift: Tensor) -> Fp8Rows:
        return self.input(modulated_layer_norm(x, scale, shift))

    def input(self, x: Tensor) -> Fp8Rows:
        values, scale = quantize_fp8_rows(x[0])
        return Fp8Rows(values[None], scale[None])

    def dense(self, x: Fp8Rows) -> Tensor:
        return (x.values.float() * x.scale).to(self.bias.dtype)

    def into(self, x: Fp8Rows, out: Tensor, *, gelu: bool = False) -> None:
        product = self._product(x)
        if gelu:
            torch.ops.aten.gelu_(product, approximate="tanh")
        out[0] = product

    def add_gated(self, x: Fp8Rows, residual: Tensor, gate: Tensor) -> None:
        gated_residual(residual, self._product(x)[None], gate)

    def _product(self, x: Fp8Rows) -> Tensor:
        """The product [M, N] of fp8 rows and the weight, scaled, with the bias added."""
        return torch._scaled_mm(
            x.values[0].contiguous(),
            self.weight.t(),
            scale_a=x.scale[0].contiguous(),
            scale_b=self.scale.contiguous(),
            bias=self.bias,
            out_dtype=torch.bfloat16,
        )


@dataclass(frozen=True, slots=True)
class PackedFp8Linear:
    """An fp8 weight as it is stored; fields as of :class:`Fp8Linear`."""

    weight: Tensor
    scale: Tensor
    bias: Tensor
    dtype: torch.dtype

    def unpacked(self) -> Fp8Linear | Linear:
        """The product in fp8, or on a device without it a weight of ``dtype``."""
        if multiplies_fp8(self.weight.device, self.dtype):
            return Fp8Linear(self.weight, self.scale, self.bias)
        weight = torch.empty(self.weight.shape, dtype=self.dtype, device=self.weight.device)
        scales = self.scale.t().split(_ROWS)
        for values, scale, out in zip(self.weight.split(_ROWS), scales, weight.split(_ROWS), strict=True):
            out.copy_(values.float() * scale)
        return Linear(weight, self.bias)


@dataclass(frozen=True, slots=True)
class Fp8Format:
    """``precision="fp8"``: e4m3 with one scale per output row (approximate)."""

    dtype: torch.dtype
    name = "fp8"

    def storage(self, rows: int, cols: int, split: int = 0) -> dict[str, StoredTensor]:
        # One scale for both ranges of inputs: a floating-point format is as exact for the smaller one.
        return {
            "weight": StoredTensor((rows, cols), FP8),
            "scale": StoredTensor((1, rows), torch.float32, row_axis=1),
        }

    def encode(self, weight: Tensor, split: int = 0) -> dict[str, Tensor]:
        values, scale = quantize_fp8_rows(weight)
        return {"weight": values, "scale": scale.t()}

    def decode(self, stored: Mapping[str, Tensor], split: int = 0) -> Tensor:
        return stored["weight"].float() * stored["scale"].t()

    def layer(self, stored: Mapping[str, Tensor], bias: Tensor, split: int = 0) -> PackedFp8Linear:
        return PackedFp8Linear(stored["weight"], stored["scale"], bias, self.dtype)
