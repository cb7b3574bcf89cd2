"""One step of an engine in a process of its own: ``python -P -m isoframe.bench.budgets.ram_step STORE RAM_BYTES``; 0 is no budget."""

import json
import re
import sys
import tempfile
import zlib
from pathlib import Path

import torch

from ...engine import Conditioning, Engine, EngineConfig, SamplingConfig
from ...engine.families.framepack.transformer_config import TransformerConfig
from ...engine.weights.store import open_store


def main(folder: str, ram_bytes: int) -> None:
    """Print the tier, the planned peak, the measured peak and a checksum of the latents as JSON."""
    square = torch.randn(256, 256)
    _ = square @ square
    before = status_bytes("VmRSS")
    with tempfile.TemporaryDirectory() as cache_dir:
        config = EngineConfig(device="cpu", ram=ram_bytes or None, cache_dir=cache_dir)
        with Engine.load(folder, config=config, size=(64, 64)) as engine:
            plan = engine.plan_sampling(_SAMPLING, (64, 64))
            latents = engine.sample_video(_conditioning(open_store(folder).config), _SAMPLING)
    peak_bytes = status_bytes("VmHWM") - before
    assert latents.isfinite().all()
    json.dump(
        {
            "tier": plan.tier,
            "planned_bytes": plan.peak + plan.host.total,
            "peak_bytes": peak_bytes,
            "checksum": zlib.crc32(latents.numpy().tobytes()),
        },
        sys.stdout,
    )


_SAMPLING = SamplingConfig(num_sections=1, num_steps=1, latent_window_size=1)


def _conditioning(config: TransformerConfig) -> Conditioning:
    """Of a small video."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=generator)

    return Conditioning(
        text_embeds=draw(8, config.text_embed_dim),
        text_mask=torch.ones(1, 8, dtype=torch.bool),
        pooled_embeds=draw(config.pooled_projection_dim),
        image_embeds=draw(4, config.image_proj_dim),
        start_latent=draw(config.in_channels, 1, 8, 8),
    )


def status_bytes(key: str) -> int:
    """A size from the kernel's account of this process."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, key
    return 1024 * int(found[1])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
