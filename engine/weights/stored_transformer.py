"""A transformer whose weights come from a unit store: units through a streamer, the rest when it is needed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..families.framepack.transformer import PackedTransformer
from ..families.registry import family_of
from ..model.units import ResidentUnits, UnitSource
from .copies import make_copies
from .host import PinnedWeights, Tier, open_weights
from .store import Store, StoredBlob
from .streaming import Streamer
from .timeline import EventLog


def stored_transformer(
    store: Store, device: torch.device, units: UnitSource, *, has_fp32_head: bool = False
) -> PackedTransformer:
    """The transformer of ``store`` over ``units``, see :func:`open_units`.

    What only the start of a job needs is read from the files each time and dropped after use.
    """
    dtype = store.weight_format.dtype
    residual_dtype = torch.float32 if dtype == torch.float16 else dtype
    transformer: PackedTransformer = family_of(store.config).transformer_class()(
        store.config,
        dtype,
        device,
        weight_format=store.weight_format,
        has_fp32_head=has_fp32_head,
        units=units,
        job_book=StoredBook(store, residual_dtype, device),
    )
    for name, destination in transformer.outer_destinations.items():
        destination.write(store.parameters[name].read())
    return transformer


def open_units(
    store: Store,
    device: torch.device,
    *,
    tier: Tier,
    ring: int,
    residents: Collection[int] = (),
    log: EventLog | None = None,
) -> UnitSource:
    """The units of ``store`` on ``device``.

    On the CPU, tier "pinned" is all units in memory, used where they lie; ``ring`` and ``residents`` do not matter.

    Args:
        store: an opened store.
        device: where they compute.
        tier: where they are kept on the host.
        ring: slots on the device, at least 2.
        residents: units that stay on the device.
        log: gets the events of every copy and use.
    """
    if device.type == "cpu" and tier == "pinned":
        blobs = PinnedWeights.read_all(store.units, is_locked=False).blobs
        return ResidentUnits(store.layouts, device, blobs)
    copies = make_copies(
        open_weights(store.units, tier, device),
        device,
        unit_bytes=max(layout.num_bytes for layout in store.layouts),
        is_timed=log is not None,
    )
    return Streamer(store.layouts, copies, ring=ring, residents=residents, log=log)


class StoredBook:
    """The weights that only the start of a job needs, on disk until each computes; a :class:`JobBook`."""

    def __init__(self, store: Store, dtype: torch.dtype, device: torch.device) -> None:
        self._store = store
        self._dtype = dtype
        self._device = device

    def linear(
        self, names: str | Sequence[str], in_features: int, out_features: int | Sequence[int]
    ) -> "StoredLinear":
        names = [names] if isinstance(names, str) else names
        return StoredLinear(
            tuple(self._store.parameters[f"{name}.weight"] for name in names),
            tuple(self._store.parameters[f"{name}.bias"] for name in names),
            self._dtype,
        )

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Norms: small enough to stay."""
        return self._store.parameters[name].read().to(self._device, self._dtype)


@dataclass(frozen=True, slots=True)
class StoredLinear:
    """A linear layer, several stacked along the output, that is read for each call."""

    weights: tuple[StoredBlob, ...]
    biases: tuple[StoredBlob, ...]
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = (self._read(blobs, x.device) for blobs in (self.weights, self.biases))
        return torch.nn.functional.linear(x, weight, bias)

    def float(self) -> "StoredLinear":
        return replace(self, dtype=torch.float32)

    def _read(self, blobs: tuple[StoredBlob, ...], device: torch.device) -> Tensor:
        parts = [blob.read().to(device, self.dtype) for blob in blobs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
