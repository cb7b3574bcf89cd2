"""Who holds the memory: every tensor that is alive at the worst moment of a phase, by the code that made it."""

import sys
import weakref
from collections import Counter
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...engine.events import Event, PhaseEvent

_PACKAGES = (
    "isoframe.engine.",
    "isoframe.kernels.",
    "isoframe.quant.",
    "isoframe.bench.budgets.planner_answers",
)
_SHORT_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
# On the meta device these only check shapes, which takes milliseconds each.
_CHECKS_ONLY = {torch.ops.aten.gelu_.default, torch.ops.aten.addmm.out}


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Tensors of one kind that are alive together.

    Attributes:
        name: the function of ours that made them.
        what: shape and dtype of each.
        count: how many.
        num_bytes: of all of them.
    """

    name: str
    what: str
    count: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePeak:
    """The worst moment of one phase.

    Attributes:
        phase: as in :class:`PhaseEvent`.
        num_bytes: of all tensors that were alive.
        owners: the largest first.
    """

    phase: str
    num_bytes: int
    owners: tuple[Owner, ...]


class LiveTensors(TorchDispatchMode):
    """Follows the storages on one kind of device from the operation that makes them until Python lets go of them.

    Attributes:
        phase: what runs now; :meth:`on_event` keeps it.
    """

    def __init__(self, device_type: str) -> None:
        """Follow ``device_type``: "cuda", "cpu" or "meta"; what is there already does not count."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class is untyped
        self.phase = "start"
        self._device_type = device_type
        self._num_bytes = 0
        self._live: dict[int, tuple[str, str, int]] = {}
        self._peaks: dict[str, tuple[int, list[tuple[str, str, int]]]] = {}
        # A snapshot is taken when the first tensor goes after a peak, not at every one that comes.
        self._is_at_peak = False

    def on_event(self, event: Event) -> None:
        """Take an event of the job: a phase that begins may begin with its peak."""
        if isinstance(event, PhaseEvent):
            self._keep_peak()
            self.phase = event.phase
            self._note_peak()

    def peaks(self, num_owners: int = 12) -> list[PhasePeak]:
        """The worst moment of every phase, in the order of their first appearance."""
        self._keep_peak()
        return [
            PhasePeak(phase=phase, num_bytes=num_bytes, owners=_largest(entries, num_owners))
            for phase, (num_bytes, entries) in self._peaks.items()
        ]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CHECKS_ONLY and self._device_type == "meta":
            return kwargs.get("out", args[0])
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        if tensor.device.type != self._device_type:
            return
        storage = tensor.untyped_storage()
        if storage._cdata in self._live:
            return
        num_bytes = storage.nbytes()
        self._live[storage._cdata] = (_maker(), _describe(tensor), num_bytes)
        self._num_bytes += num_bytes
        weakref.finalize(storage, self._drop, storage._cdata)
        self._note_peak()

    def _drop(self, key: int) -> None:
        self._keep_peak()
        self._num_bytes -= self._live.pop(key)[2]

    def _note_peak(self) -> None:
        known = self._peaks.get(self.phase)
        self._is_at_peak |= known is None or self._num_bytes > known[0]

    def _keep_peak(self) -> None:
        if self._is_at_peak:
            self._peaks[self.phase] = (self._num_bytes, list(self._live.values()))
            self._is_at_peak = False


def _largest(entries: list[tuple[str, str, int]], count: int) -> tuple[Owner, ...]:
    """Tensors of one maker and shape are one owner."""
    numbers = Counter(entries)
    owners = [
        Owner(name=name, what=what, count=number, num_bytes=number * num_bytes)
        for (name, what, num_bytes), number in numbers.items()
    ]
    return tuple(sorted(owners, key=lambda owner: -owner.num_bytes)[:count])


def _maker() -> str:
    """The innermost function of ours on the stack; the outermost module's name where none of ours is on it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_PACKAGES):
            return f"{module.removeprefix('isoframe.')}: {frame.f_code.co_qualname.partition('.<locals>')[0]}"
        frame = frame.f_back
    return "other code"


def _describe(tensor: Tensor) -> str:
    num_bytes = tensor.untyped_storage().nbytes()
    if tensor.nbytes < num_bytes:
        return f"{num_bytes / 2**20:.1f} MiB of several tensors"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{_SHORT_DTYPES.get(dtype, dtype)} {list(tensor.shape)}"
