"""What every section of a job does, in whole numbers: the same for every section, or the cost is not constant."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...engine.companions.vae import VideoVAE
from ...engine.events import Event, PhaseEvent, SectionEvent
from ...engine.families.framepack.transformer import PackedTransformer
from ...engine.media.segments import SegmentSpool
from .method_watch import observe

# Before it, history fills up and a job's paddings differ; the published rule has settled long before.
FIRST_CONSTANT_SECTION = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionCounts:
    """One section.

    Attributes:
        tokens: latent tokens of the packed sequence.
        operations: operations that torch dispatched; an operator of ours is one.
        allocated_bytes: tensor memory that came into being.
        live_bytes: of all tensors made since the start of the job, what still exists at the end of the section.
        decoded_frames: frames that the VAE decoded, those included that are blended with earlier ones.
        encoded_frames: frames that the video encoder took.
        device_bytes: copied from the host to a device.
    """

    tokens: int
    operations: int
    allocated_bytes: int
    live_bytes: int
    decoded_frames: int
    encoded_frames: int
    device_bytes: int


class SectionCounter(TorchDispatchMode):
    """Counts what runs inside the block, section by section; :meth:`on_event` tells where they begin and end.

    Attributes:
        sections: counts of every finished section.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class is untyped
        self.sections: list[SectionCounts] = []
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._reset()

    def on_event(self, event: Event) -> None:
        """Take an event of the job."""
        if isinstance(event, PhaseEvent) and event.phase == "pack":
            self._reset()
        elif isinstance(event, SectionEvent):
            self.sections.append(
                SectionCounts(
                    tokens=self._tokens,
                    operations=self._operations,
                    allocated_bytes=self._allocated_bytes,
                    live_bytes=self._live_bytes(),
                    decoded_frames=self._decoded_frames,
                    encoded_frames=self._encoded_frames,
                    device_bytes=self._device_bytes,
                )
            )

    @contextmanager
    def watching(self) -> Iterator["SectionCounter"]:
        """Count while the block runs."""
        with ExitStack() as stack:
            for probe in (
                observe(PackedTransformer, "pack_section", self._count_tokens),
                observe(VideoVAE, "decode", self._count_decoded),
                observe(SegmentSpool, "append", self._count_encoded),
            ):
                stack.enter_context(probe)
            stack.enter_context(self)
            yield self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._operations += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._note_storage(leaf)
        self._device_bytes += _device_bytes(func, args, result)
        return result

    def _reset(self) -> None:
        self._tokens = self._operations = self._allocated_bytes = 0
        self._decoded_frames = self._encoded_frames = self._device_bytes = 0

    def _note_storage(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        # The weak reference keeps the address from being used again.
        if storage._cdata not in self._storages:
            self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
            self._allocated_bytes += storage.nbytes()

    def _live_bytes(self) -> int:
        self._storages = {key: value for key, value in self._storages.items() if not value[0].expired()}
        return sum(num_bytes for _, num_bytes in self._storages.values())

    def _count_tokens(self, args: tuple[Any, ...], packed: Any) -> None:
        self._tokens += packed.num_latent_tokens

    def _count_decoded(self, args: tuple[Any, ...], frames: Tensor) -> None:
        self._decoded_frames += frames.shape[2]

    def _count_encoded(self, args: tuple[Any, ...], segment: Any) -> None:
        self._encoded_frames += segment.num_frames


def count_sections(render: Callable[[Callable[[Event], None]], object]) -> list[SectionCounts]:
    """Counts of every section of the job that ``render`` runs; it gets the function to call with every event."""
    with SectionCounter().watching() as counter:
        render(counter.on_event)
    return counter.sections


def find_differences(counts: Sequence[SectionCounts]) -> list[str]:
    """Counters that are not the same from section 6 on, in words; the last section, which also releases what the
    others held back, is left out."""
    settled = list(enumerate(counts, start=1))[FIRST_CONSTANT_SECTION:-1]
    differences = []
    for position, field in enumerate(fields(SectionCounts)):
        values = [(number, astuple(section)[position]) for number, section in settled]
        first = values[0][1] if values else 0
        changed = next(((number, value) for number, value in values if value != first), None)
        if changed is not None:
            number, value = changed
            differences.append(f"{field.name} {first} in section {values[0][0]}, {value} in section {number}")
    return differences


def _device_bytes(func: Any, args: tuple[Any, ...], result: Any) -> int:
    """Bytes that a copy brings from the host to a device."""
    name = func._schema.name
    if name == "aten::copy_":
        source, target = args[1], args[0]
    elif name == "aten::_to_copy":
        source, target = args[0], result
    else:
        return 0
    is_upload = source.device.type == "cpu" and target.device.type not in ("cpu", "meta")
    return source.numel() * source.element_size() if is_upload else 0
