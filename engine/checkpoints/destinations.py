"""Where the tensors of a checkpoint go: parameters that are kept as they are, and weights that are stored encoded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# 4 MiB of fp32: small beside a unit of the published model, large enough to be fast.
_BLOCK_ELEMENTS = 2**20


class Destination(Protocol):
    """Where a tensor of a checkpoint goes."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def num_bytes(self) -> int:
        """Memory that it takes once written."""
        ...

    def write(self, tensor: Tensor) -> None: ...


@dataclass(frozen=True, slots=True)
class DenseTensor:
    """A parameter, or a view of one, that is kept in its own dtype."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def num_bytes(self) -> int:
        return self.tensor.nbytes

    def write(self, tensor: Tensor) -> None:
        self.tensor.copy_(tensor)


@dataclass(frozen=True, slots=True)
class EncodedWeight:
    """Rows of a stored weight, written through its format.

    Attributes:
        shape: of the weight, [rows, columns].
        views: where its stored tensors go, by name.
        row_axes: the axis of each of them that counts rows.
        encode: stored tensors of some rows of the weight; rows are independent of each other.
        decode: the rows in fp32 that stored tensors stand for.
    """

    shape: tuple[int, ...]
    views: Mapping[str, Tensor]
    row_axes: Mapping[str, int]
    encode: Callable[[Tensor], Mapping[str, Tensor]]
    decode: Callable[[Mapping[str, Tensor]], Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(view.nbytes for view in self.views.values())

    def write(self, tensor: Tensor) -> None:
        for rows in self._row_blocks():
            views = self._rows(rows)
            for name, encoded in self.encode(tensor[rows]).items():
                views[name].copy_(encoded)

    def errors(self, tensor: Tensor) -> tuple[float, float]:
        """Sums of squares of ``tensor``, which was written here, and of what is stored less ``tensor``; zeros where it
        is stored as it was."""
        signal = noise = 0.0
        if any(view.dtype == tensor.dtype and torch.equal(view, tensor) for view in self.views.values()):
            return signal, noise
        for rows in self._row_blocks():
            exact = tensor[rows].float()
            difference = self.decode(self._rows(rows)) - exact
            signal += float(exact.double().square().sum())
            noise += float(difference.double().square().sum())
        return signal, noise

    def _row_blocks(self) -> list[slice]:
        """Blocks of rows that keep the temporaries of a format small."""
        count, columns = self.shape
        step = max(1, _BLOCK_ELEMENTS // columns)
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]

    def _rows(self, rows: slice) -> dict[str, Tensor]:
        return {
            name: view.narrow(self.row_axes[name], rows.start, rows.stop - rows.start)
            for name, view in self.views.items()
        }
