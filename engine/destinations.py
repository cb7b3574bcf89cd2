"""Where the tensors of a checkpoint go: parameters that are kept as they are, and weights that are stored encoded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


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
    """Rows of a stored weight, written through its format."""

    shape: tuple[int, ...]
    views: Mapping[str, Tensor]
    encode: Callable[[Tensor], Mapping[str, Tensor]]

    @property
    def num_bytes(self) -> int:
        return sum(view.nbytes for view in self.views.values())

    def write(self, tensor: Tensor) -> None:
        for name, encoded in self.encode(tensor).items():
            self.views[name].copy_(encoded)
