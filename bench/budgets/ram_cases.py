"""RAM of a step on the CPU with a model larger than its budget: a random model, its store, a fresh process."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...engine.checkpoints.checkpoint import Checkpoint
from ...engine.checkpoints.tensor_files import TensorEntry
from ...engine.families.framepack.transformer import PackedTransformer
from ...engine.families.framepack.transformer_config import TransformerConfig
from ...engine.weights.conversion import convert
from ...engine.weights.store import Store
from ...quant import DenseFormat
from ..meters.fresh_process import run_module

# Allowed above the budget, for what the allocator and the threads round up.
TOLERANCE = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RamCase:
    """A random fp32 model and a budget that it does not fit.

    Attributes:
        name: of the case.
        num_heads: heads of 128 channels.
        num_dual_blocks: two units each.
        num_single_blocks: one unit each.
        ram_bytes: what a step may take.
    """

    name: str
    num_heads: int
    num_dual_blocks: int
    num_single_blocks: int
    ram_bytes: int

    def config(self) -> TransformerConfig:
        return TransformerConfig(
            in_channels=16,
            out_channels=16,
            num_attention_heads=self.num_heads,
            attention_head_dim=128,
            num_layers=self.num_dual_blocks,
            num_single_layers=self.num_single_blocks,
            num_refiner_layers=2,
            mlp_ratio=4.0,
            patch_size=2,
            patch_size_t=1,
            qk_norm="rms_norm",
            guidance_embeds=True,
            text_embed_dim=256,
            pooled_projection_dim=128,
            rope_theta=256.0,
            rope_axes_dim=(16, 56, 56),
            has_image_proj=True,
            image_proj_dim=128,
            has_clean_x_embedder=True,
        )


CASES = {
    case.name: case
    for case in (
        # 40 units of 7.1 MB, 283 MB in all; and of 38.5 MB, 1.54 GB in all.
        RamCase(name="small", num_heads=3, num_dual_blocks=10, num_single_blocks=20, ram_bytes=192 * 2**20),
        RamCase(name="full", num_heads=7, num_dual_blocks=10, num_single_blocks=20, ram_bytes=400 * 2**20),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RamResult:
    """One step of one case.

    Attributes:
        case: which.
        has_budget: the engine had the case's budget; else 60 % of what is available.
        tier: of the units: "disk" or, where all are in memory, "pinned".
        unit_bytes: of all units.
        planned_bytes: what the planner expected.
        peak_bytes: VmHWM less VmRSS before the model was opened.
        limit_bytes: the budget and its tolerance.
        checksum: of the latents' bytes.
    """

    case: str
    has_budget: bool
    tier: str
    unit_bytes: int
    planned_bytes: int
    peak_bytes: int
    limit_bytes: int
    checksum: int

    @property
    def is_reached(self) -> bool:
        return self.peak_bytes <= self.limit_bytes


class RandomCheckpoint(Checkpoint):
    """A checkpoint whose tensors are drawn when they are read."""

    def tensor(self, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        shape = self.entries[name].shape
        noise: Tensor = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            return noise / 8 + (0 if name.endswith("bias") else 1)
        gain: float = (shape[0] / noise.numel()) ** 0.5
        return noise * gain


def build_store(case: RamCase, folder: Path) -> Store:
    """The case's model as an fp32 store; one that is there already is opened."""
    config = case.config()
    model = PackedTransformer(config, torch.float32, torch.device("meta"))
    entries = {
        name: TensorEntry(path=folder, dtype="F32", shape=destination.shape, start=0, num_bytes=0)
        for name, destination in model.destinations.items()
    }
    checkpoint = RandomCheckpoint(
        config=config,
        name=f"random-{case.name}",
        source_hash=f"random-{case.name}",
        entries=entries,
        scales={},
    )
    return convert(checkpoint, DenseFormat(torch.float32), folder)


def measure_ram(case: RamCase, store: Store, *, has_budget: bool) -> RamResult:
    """Run one step of an engine in a fresh process, inside the budget of ``case`` or without one.

    Raises:
        ProcessError: the process failed; with what it wrote.
    """
    # One thread: every further one has buffers of its own, which are not the model's.
    measured = run_module(
        "budgets.ram_step",
        str(store.folder),
        str(case.ram_bytes if has_budget else 0),
        environment={"OMP_NUM_THREADS": "1"},
    )
    return RamResult(
        case=case.name,
        has_budget=has_budget,
        tier=measured["tier"],
        unit_bytes=sum(store.unit_bytes),
        planned_bytes=measured["planned_bytes"],
        peak_bytes=measured["peak_bytes"],
        limit_bytes=int(case.ram_bytes * TOLERANCE),
        checksum=measured["checksum"],
    )


def describe(result: RamResult) -> str:
    """One line."""
    verdict = "within" if result.is_reached else "ABOVE"
    return (
        f"{result.case:6} tier {result.tier:7} units {result.unit_bytes / 2**20:6.0f} MiB  planned "
        f"{result.planned_bytes / 2**20:6.1f} MiB  peak {result.peak_bytes / 2**20:7.1f} MiB  {verdict} "
        f"{result.limit_bytes / 2**20:.0f} MiB"
    )
