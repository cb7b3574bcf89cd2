"""One step of a stored model in a process of its own: ``python -P -m isoframe.bench.ram_step STORE RAM_BYTES TIER``."""

import json
import re
import sys
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ..engine import Engine  # noqa: F401  # what any user has imported before the measurement begins
from ..engine.history import CleanLatents
from ..engine.store import Store, open_store
from ..engine.stored_transformer import open_units, stored_transformer
from ..engine.transformer import FrameIndices, PackedTransformer
from ..engine.weights import Tier, choose_tier

_RING = 3


def main(folder: str, ram_bytes: int, tier: str) -> None:
    """Print the tier, the peak and a checksum of the velocity as JSON."""
    square = torch.randn(256, 256)
    _ = square @ square
    before = status_bytes("VmRSS")
    store = open_store(folder)
    chosen = _tier(store, ram_bytes) if tier == "auto" else "pinned"
    units = open_units(store, torch.device("cpu"), tier=chosen, ring=_RING)
    velocity = _step(stored_transformer(store, torch.device("cpu"), units))
    peak_bytes = status_bytes("VmHWM") - before
    assert velocity.isfinite().all()
    json.dump(
        {"tier": chosen, "peak_bytes": peak_bytes, "checksum": zlib.crc32(velocity.numpy().tobytes())},
        sys.stdout,
    )


def _tier(store: Store, ram_bytes: int) -> Tier:
    sizes = [entry.num_bytes for entry in store.unit_entries]
    return choose_tier(sum(sizes), ram_bytes=ram_bytes, ring_bytes=_RING * max(sizes))


def _step(transformer: PackedTransformer) -> Tensor:
    """Velocity of one step of one section of a small video."""
    config, generator = transformer.config, torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator)

    with torch.inference_mode():
        job = transformer.prepare_job(
            torch.tensor([900.0]),
            10_000.0,
            draw(8, config.text_embed_dim),
            None,
            draw(config.pooled_projection_dim),
            transformer.project_image(draw(4, config.image_proj_dim)),
        )
        clean = CleanLatents(draw(config.in_channels, 2, 8, 8), None, None)
        section = transformer.pack_section(clean, FrameIndices(latent=(1,), clean=(0, 2)), (1, 8, 8))
        return transformer.step(draw(config.in_channels, 1, 8, 8), 0, job, section).compute()


def status_bytes(key: str) -> int:
    """A size from the kernel's account of this process."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, key
    return 1024 * int(found[1])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
