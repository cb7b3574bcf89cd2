"""LoRAs at work: low-rank side branches beside weights of any format, which stay as they are.

``y = W x + b`` becomes ``y = W x + b + up (down x)``, with strength and alpha / r folded into ``up``. Several LoRAs on
one layer are one branch of their summed rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...kernels import gated_residual
from ...quant import Activation, Projection, StoredLayer
from ..checkpoints.lora import ActiveLoras
from .precision import UnitSpec
from .units import Unit, UnitSource

# Rows whose side branch exists at a time: 8-bit activations are expanded for it.
_ROWS = 2048


@dataclass(frozen=True, slots=True)
class BranchRows:
    """The part of a branch that changes the output rows of one of several stacked layers.

    Attributes:
        start: first output row.
        rank: first row of the branch's ``down`` that belongs to it.
        up: [n, r] of the branch's dtype.
    """

    start: int
    rank: int
    up: Tensor

    @property
    def outputs(self) -> slice:
        return slice(self.start, self.start + self.up.shape[0])

    @property
    def ranks(self) -> slice:
        return slice(self.rank, self.rank + self.up.shape[1])

    def within(self, start: int, end: int) -> "BranchRows | None":
        """What of it lies in the output rows ``start`` to ``end``, counted from ``start``; None if nothing does."""
        first, last = max(start, self.start), min(end, self.outputs.stop)
        if first >= last:
            return None
        return BranchRows(first - start, self.rank, self.up[first - self.start : last - self.start])


@dataclass(frozen=True, slots=True)
class SideBranch:
    """Low-rank change of a linear layer, or of several stacked along the output.

    Attributes:
        down: [R, K], of all parts.
        parts: in the order of their output rows and of their rows of ``down``.
    """

    down: Tensor
    parts: tuple[BranchRows, ...]

    def rows(self, start: int, end: int) -> "SideBranch":
        """The branch of the output rows ``start`` to ``end``; its ``parts`` may be none."""
        parts = [part for whole in self.parts if (part := whole.within(start, end)) is not None]
        if not parts:
            return SideBranch(self.down[:0], ())
        first = parts[0].rank
        down = self.down[first : parts[-1].ranks.stop]
        return SideBranch(down, tuple(replace(part, rank=part.rank - first) for part in parts))

    def products(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """What to add to which outputs for rows ``x`` [..., K]: (outputs, [..., n])."""
        inner = linear(x, self.down)
        for part in self.parts:
            yield part.outputs, linear(inner[..., part.ranks], part.up)

    def to(self, device: torch.device) -> "SideBranch":
        parts = tuple(replace(part, up=part.up.to(device)) for part in self.parts)
        return SideBranch(self.down.to(device), parts)

    def float(self) -> "SideBranch":
        """The branch in fp32."""
        return SideBranch(self.down.float(), tuple(replace(part, up=part.up.float()) for part in self.parts))


def side_branch(
    layers: Sequence[str],
    rows: Sequence[int],
    loras: ActiveLoras,
    dtype: torch.dtype,
    device: torch.device,
) -> SideBranch | None:
    """The branch of ``layers``, stacked with ``rows`` outputs each; None if no LoRA touches them."""
    downs: list[Tensor] = []
    parts: list[BranchRows] = []
    start = rank = 0
    for layer, num_rows in zip(layers, rows, strict=True):
        found = [(lora.factors[layer], strength) for lora, strength in loras if layer in lora.factors]
        if found:
            ups = [factors.up.float() * (factors.scale * strength) for factors, strength in found]
            up = torch.cat(ups, dim=1).to(device, dtype)
            parts.append(BranchRows(start, rank, up))
            downs += [factors.down.to(device, dtype) for factors, _ in found]
            rank += up.shape[1]
        start += num_rows
    return SideBranch(torch.cat(downs), tuple(parts)) if parts else None


@dataclass(frozen=True, slots=True)
class LoraProjection:
    """A projection with a side branch."""

    base: Projection
    branch: SideBranch

    @property
    def out_features(self) -> int:
        return self.base.out_features

    @property
    def in_features(self) -> int:
        return self.base.in_features

    def rows(self, start: int, end: int | None = None) -> "LoraProjection":
        last = self.out_features if end is None else end
        return LoraProjection(self.base.rows(start, end), self.branch.rows(start, last))

    def norm_input(self, x: Tensor, scale: Tensor, shift: Tensor) -> Activation:
        return self.base.norm_input(x, scale, shift)

    def input(self, x: Tensor) -> Activation:
        return self.base.input(x)

    def dense(self, x: Activation) -> Tensor:
        return self.base.dense(x)

    def into(self, x: Activation, out: Tensor, *, gelu: bool = False) -> None:
        if not self.branch.parts:
            self.base.into(x, out, gelu=gelu)
            return
        self.base.into(x, out)
        for rows, outputs, product in self._products(x, out.shape[1]):
            out[:, rows, outputs] += product
        if gelu:
            torch.ops.aten.gelu_(out, approximate="tanh")

    def add_gated(self, x: Activation, residual: Tensor, gate: Tensor) -> None:
        self.base.add_gated(x, residual, gate)
        for rows, outputs, product in self._products(x, residual.shape[1]):
            gated_residual(residual[:, rows, outputs], product, gate[:, outputs])

    def _products(self, x: Activation, num_rows: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """What to add where: (rows, outputs, [1, m, n])."""
        for start in range(0, num_rows, _ROWS):
            rows = slice(start, min(start + _ROWS, num_rows))
            for outputs, product in self.branch.products(self.base.dense(x[:, rows])):
                yield rows, outputs, product


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """A stored layer with a side branch."""

    base: StoredLayer
    branch: SideBranch

    def unpacked(self) -> LoraProjection:
        return LoraProjection(self.base.unpacked(), self.branch)


class LoraUnits:
    """Units whose layers have side branches; wherever the units live, the branches are on the device."""

    def __init__(self, base: UnitSource, branches: Sequence[Mapping[str, SideBranch]]) -> None:
        """Put ``branches``, by unit and layer, beside the units of ``base``; see :func:`unit_branches`."""
        self.base = base
        self._branches = branches

    def acquire(self, index: int) -> Unit:
        unit, branches = self.base.acquire(index), self._branches[index]
        if not branches:
            return unit
        return Unit(
            {
                name: LoraLayer(layer, branches[name]) if name in branches else layer
                for name, layer in unit.layers.items()
            }
        )

    def release(self, index: int) -> None:
        self.base.release(index)


def branch_bytes(specs: Sequence[UnitSpec], loras: ActiveLoras, dtype: torch.dtype) -> int:
    """Memory on the device of what :class:`LoraUnits` holds, and of the rows that it expands at a time."""
    values = scratch = 0
    for layer in (layer for spec in specs for layer in spec.layers):
        ranks = [
            (lora.factors[source].down.shape[0], rows)
            for source, rows in zip(layer.sources, layer.rows, strict=True)
            for lora, _ in loras
            if source in lora.factors
        ]
        values += sum(rank * (layer.in_features + rows) for rank, rows in ranks)
        if ranks:
            widest = max(rows for _, rows in ranks)
            scratch = max(scratch, _ROWS * (layer.in_features + widest + sum(rank for rank, _ in ranks)))
    return dtype.itemsize * (values + scratch)


def unit_branches(
    specs: Sequence[UnitSpec], loras: ActiveLoras, dtype: torch.dtype, device: torch.device
) -> list[dict[str, SideBranch]]:
    """The branches of every unit by the names of its layers, on ``device``; ``dtype`` is that of the activations."""
    return [
        {
            layer.name: branch
            for layer in spec.layers
            if (branch := side_branch(layer.sources, layer.rows, loras, dtype, device)) is not None
        }
        for spec in specs
    ]
