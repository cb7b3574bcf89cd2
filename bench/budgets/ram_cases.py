"""``bench ram``: a step on the CPU with a random model that is larger than its budget in RAM."""

import dataclasses
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
from ..records.rows import BenchRow, Gate, make_rows
from ..subjects.single_step import MODEL_13B
from .fresh_point import run_in_process
from .point import MemoryJob, Outcome

# Allowed above the budget, for what the allocator and the threads round up.
TOLERANCE = 1.1
_MIB = 2**20


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
        return dataclasses.replace(
            MODEL_13B,
            num_attention_heads=self.num_heads,
            num_layers=self.num_dual_blocks,
            num_single_layers=self.num_single_blocks,
            text_embed_dim=256,
            pooled_projection_dim=128,
            image_proj_dim=128,
        )


CASES = {
    case.name: case
    for case in (
        # 40 units of 7.1 MB, 283 MB in all; and of 38.5 MB, 1.54 GB in all.
        RamCase(name="small", num_heads=3, num_dual_blocks=10, num_single_blocks=20, ram_bytes=192 * _MIB),
        RamCase(name="full", num_heads=7, num_dual_blocks=10, num_single_blocks=20, ram_bytes=400 * _MIB),
    )
}


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
    name = f"random-{case.name}"
    checkpoint = RandomCheckpoint(config=config, name=name, source_hash=name, entries=entries, scales={})
    return convert(checkpoint, DenseFormat(torch.float32), folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class RamResult:
    """One step of one case.

    Attributes:
        case: which.
        unit_bytes: of all units.
        outcome: inside the case's budget, or with 60 % of what is available; its peak is what the process had not before.
    """

    case: RamCase
    unit_bytes: int
    outcome: Outcome

    @property
    def limit_bytes(self) -> int:
        """The budget and its tolerance."""
        return int(self.case.ram_bytes * TOLERANCE)

    @property
    def is_reached(self) -> bool:
        return self.outcome.peak <= self.limit_bytes

    def describe(self) -> str:
        """Tier, sizes, peak and budget of the step in one line, and whether the budget was kept."""
        outcome, verdict = self.outcome, "within" if self.is_reached else "ABOVE"
        return (
            f"{self.case.name:6} tier {outcome.tier:7} units {self.unit_bytes / _MIB:6.0f} MiB  planned "
            f"{outcome.planned / _MIB:6.1f} MiB  peak {outcome.peak / _MIB:7.1f} MiB  {verdict} "
            f"{self.limit_bytes / _MIB:.0f} MiB"
        )


def measure_ram(case: RamCase, store: Store, *, has_budget: bool) -> RamResult:
    """Run one step of an engine in a fresh process, inside the budget of ``case`` or without one.

    Raises:
        ProcessError: the process failed; with what it wrote.
    """
    job = MemoryJob(
        work="stored steps",
        model=str(store.folder),
        device="cpu",
        budget=case.ram_bytes if has_budget else None,
        size=(64, 64),
        window=1,
        num_steps=1,
        precision="fp32",
    )
    # One thread: every further one has buffers of its own, which are not the model's.
    outcome = run_in_process(job, {"OMP_NUM_THREADS": "1"})
    return RamResult(case=case, unit_bytes=sum(store.unit_bytes), outcome=outcome)


def ram_rows(results: list[RamResult]) -> list[BenchRow]:
    """The peak of every step; green where all steps of a case gave the same latents."""
    rows: list[BenchRow] = []
    for result in results:
        case = result.case
        checksums = {other.outcome.checksum for other in results if other.case == case}
        rows += make_rows(
            [(f"ram-{case.name}", result.outcome.tier, "MiB", [result.outcome.peak / _MIB])],
            shape=(case.num_heads * 128, case.num_dual_blocks, case.num_single_blocks),
            dtype="float32",
            gate=Gate(
                is_green=len(checksums) == 1,
                text=f"same bits of the latents from every tier; limit {result.limit_bytes / _MIB:.0f} MiB",
            ),
        )
    return rows
