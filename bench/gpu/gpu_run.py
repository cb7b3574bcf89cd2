"""A run of ``bench gpu``: the device, what measures on it, the time that is left, and where the rows go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..meters.gpu_timer import Budget, Timer
from ..records.environment import Environment
from ..records.rows import BenchRow, Gate

# Seconds under which no further measurement starts: compiling and measuring one case takes that long.
_RESERVE = {
    "accuracy": 10, "times": 10, "step": 45, "budget": 75, "compiled": 30, "pace": 90, "constant": 90, "vram": 120, "peers": 60
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GpuRun:
    """What every stage needs.

    Attributes:
        device: GPU.
        timer: what measures.
        budget: time that is left.
        folder: where the rows go.
        environment: hardware and versions.
    """

    device: torch.device
    timer: Timer
    budget: Budget
    folder: Path
    environment: Environment

    def row(
        self,
        case: str,
        variant: str,
        unit: str,
        values: Sequence[float],
        gate: str,
        shape: tuple[int, ...] = (),
        dtype: torch.dtype = torch.bfloat16,
        precision: str = "",
    ) -> BenchRow:
        """A row of this run; a ``gate`` that begins with FAILED is red."""
        return BenchRow(
            case=case,
            variant=variant,
            shape=shape,
            dtype=str(dtype).removeprefix("torch."),
            precision=precision,
            unit=unit,
            values=tuple(values),
            gate=Gate(is_green=not gate.startswith("FAILED"), text=gate),
            environment=self.environment,
        )

    def has_time(self, stage: str, what: str) -> bool:
        """Whether a measurement of ``stage`` may start; says so if not."""
        if self.budget.seconds_left >= _RESERVE[stage]:
            return True
        print(f"left out, no time: {stage} of {what}", flush=True)
        return False
