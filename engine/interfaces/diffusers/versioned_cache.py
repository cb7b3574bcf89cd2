"""Values that are computed from tensors, as long as these are the same."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    key: object
    tensors: tuple[Tensor | None, ...]
    versions: tuple[int, ...]
    value: T


class VersionedCache(Generic[T]):
    """Values computed from tensors, found again by identity and version; of each owner the oldest goes first.

    Args:
        capacity: values of one owner; with 0 every one is computed each time.
        trusts_inference: whether a tensor made under ``torch.inference_mode``, which carries no version, counts as
            unchanged; else what depends on it is computed each time.
    """

    def __init__(self, capacity: int, *, trusts_inference: bool = False) -> None:
        self.capacity = capacity
        self._trusts_inference = trusts_inference
        self._entries: dict[object, list[_Entry[T]]] = {}

    def get(
        self, owner: object, key: object, tensors: tuple[Tensor | None, ...], compute: Callable[[], T]
    ) -> T:
        """The value of ``owner`` that was computed with an equal ``key`` from these ``tensors``, or a new one."""
        versions = tuple(
            0 if tensor is None or tensor.is_inference() else tensor._version for tensor in tensors
        )
        if not self._trusts_inference and any(x is not None and x.is_inference() for x in tensors):
            return compute()
        entries = self._entries.setdefault(owner, [])
        for entry in entries:
            same = all(a is b for a, b in zip(entry.tensors, tensors, strict=True))
            if same and entry.key == key and entry.versions == versions:
                return entry.value
        entry = _Entry(key, tensors, versions, compute())
        entries.append(entry)
        del entries[: max(len(entries) - self.capacity, 0)]
        return entry.value

    def clear(self) -> None:
        """Forget all values."""
        self._entries.clear()
