"""A transformer whose weights come from a unit store: units through a streamer, the rest when it is needed."""

from collections.abc import Collection

import torch

from ..families.registry import family_of
from ..families.transformer_base import Transformer
from ..model.units import ResidentUnits, UnitSource
from .device_copies import make_copies
from .host_tiers import PinnedWeights, Tier, open_weights
from .store import Store
from .unit_streamer import Streamer
from .unit_timeline import EventLog


def stored_transformer(
    store: Store, device: torch.device, units: UnitSource, *, has_fp32_head: bool = False
) -> Transformer:
    """The transformer of ``store`` over ``units``, see :func:`open_units`.

    What only the start of a job needs is read from the files each time and dropped after use.
    """
    transformer = family_of(store.config).transformer_class()(
        store.config,
        store.weight_format.dtype,
        device,
        weight_format=store.weight_format,
        has_fp32_head=has_fp32_head,
        units=units,
        read_job_weight=lambda name, _: store.parameters[name].read(),
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
