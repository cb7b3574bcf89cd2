"""Counts the bytes of live tensors; on the meta device that is what a real device would hold."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# On the meta device these only check shapes, which takes milliseconds each.
_IN_PLACE = {torch.ops.aten.gelu_.default, torch.ops.aten.addmm.out}


class StorageTracker(TorchDispatchMode):
    """Follows every storage that an operation returns, until Python lets go of it.

    Attributes:
        peak: most bytes that were live at once.
        num_bytes: bytes that are live.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        """``ignored`` tensors, such as weights that are accounted elsewhere, are not counted; nor are views of them."""
        super().__init__()
        self.peak = self.num_bytes = 0
        self._kept = [tensor.untyped_storage() for tensor in ignored]
        self._known = {storage._cdata for storage in self._kept}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _IN_PLACE:
            return kwargs.get("out", args[0])
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.num_bytes += storage.nbytes()
        self.peak = max(self.peak, self.num_bytes)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.num_bytes -= num_bytes
